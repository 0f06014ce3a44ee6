"""Gates that the bundled model learns while it is trained, and carries from then on."""
# pyright: basic

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..config import ModelError
from ..identity import Identity
from ..load import load
from ..registry import find_family
from ..sparsity.blocks import MIN_BUDGET, Gate
from ..sparsity.gates import OWN
from . import gate_artifact
from .fit import Recipe
from .gate_artifact import HeldOut
from .trainable import TurboSparse

HELD_OUT_ROWS = 16  # of text, to measure on


def check(recipe: Recipe) -> None:
    """Raise ModelError for a budget that leaves nothing to choose, or nothing out."""
    least = MIN_BUDGET * recipe.page_size
    if recipe.page_budget and not least <= recipe.page_budget < recipe.long_length:
        raise ModelError(
            f"--page-budget: {recipe.page_budget} is not {least} to less than the long rows' "
            f"{recipe.long_length}; 0 reads all"
        )


def begin(model: TurboSparse, recipe: Recipe) -> list[Gate]:
    """Of a model that learns to read a part of its context; none of one that reads all."""
    if not recipe.page_budget:
        return []
    described = model.config()
    config = find_family(described).parse(described)
    return gate_artifact.begin(
        config, recipe.page_rank, model.embed_tokens.weight.device, recipe.seed
    )


def publish(out: Path, gates: list[Gate], recipe: Recipe, rows: Tensor) -> None:
    """Measure the gates beside the published weights, as they are served, on held-out rows of
    text, and let the checkpoint carry them."""
    device = gates[0].query.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoder = load(out, device, dtype).decoder
    held_out = HeldOut("WikiText-2 test", [*rows[:HELD_OUT_ROWS].long()])
    config = {
        "rank": recipe.page_rank,
        "page_size": recipe.page_size,
        "trained": "with the model, by turbosparse train --page-budget",
        **Identity.of(out, decoder.config).json(),
    }
    with torch.no_grad():
        gate_artifact.publish(
            out / OWN, decoder, gates, held_out, [recipe.page_budget], recipe.page_size, config
        )
