"""Low-rank predictors in 8 bits, where start-up asks for it: approximate by definition."""

from __future__ import annotations

import torch

from .config import ModelError
from .decoder import Decoder
from .neurons import predictors_of
from .sparsity.moe import MoE
from .sparsity.predictor import LowRankPredictor

FIELD = "predictor_dtype"
OWN, FLOAT8 = "auto", "float8"
CAPABILITY = (8, 9)  # of the first GPUs that convert float8_e4m3fn


def check(name: str, device: torch.device) -> None:
    """Raises ModelError for a type that nobody has, or not there."""
    if name not in (OWN, FLOAT8):
        raise ModelError(f"{FIELD}={name!r} is not one of {OWN}, {FLOAT8}")
    if name == FLOAT8 and device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found < CAPABILITY:
            asked, given = (".".join(map(str, version)) for version in (CAPABILITY, found))
            raise ModelError(f"{FIELD}={name!r} needs compute capability {asked}, not {given}")


def round_predictors(decoder: Decoder) -> None:
    """Every predictor of a decoder that is prepared, in float8; raises ModelError where there are
    none, or others than low-rank ones."""
    predictors = predictors_of(decoder)
    kinds = {type(predictor) for predictor in predictors}
    if kinds != {LowRankPredictor}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "no predictors"
        raise ModelError(
            f"{FIELD}={FLOAT8!r} needs low-rank predictors; this {decoder.config.family} model has "
            f"{found}"
        )
    mixtures = [module for module in decoder.modules() if isinstance(module, MoE)]
    for mixture in mixtures:
        mixture.round_predictors()
    if not mixtures:
        for predictor in predictors:
            assert isinstance(predictor, LowRankPredictor)
            predictor.round()
