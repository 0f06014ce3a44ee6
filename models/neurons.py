"""Which neurons tokens keep, and which of them are truly not zero. Knows no engine."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import Decoder
from .sparsity.ffn import SparseFFN
from .sparsity.moe import MoE
from .sparsity.predictor import NeuronPredictor, OraclePredictor


def chosen(
    ffn: nn.Module, x: Tensor, residual: Tensor, thresholds: Tensor | None = None
) -> tuple[Tensor, Tensor] | None:
    """What an FFN computes of T tokens, and what is truly active: [T, M] bool each.

    M counts the neurons of all experts; those of experts that a token was not sent to are neither.
    None where nothing can be skipped. x, residual [T, hidden], thresholds [T] as in
    `NeuronPredictor`.
    """
    if isinstance(ffn, MoE):
        return _experts(ffn, x, residual, thresholds)
    if not isinstance(ffn, SparseFFN):
        return None
    truth = OraclePredictor(ffn.gate_up, ffn.activation, ffn.threshold).select(residual, x)
    if ffn.predictor is None:
        return truth, truth
    return ffn.predictor.select(residual, x, thresholds), truth


def predictors_of(decoder: Decoder) -> list[NeuronPredictor]:
    """All that it has, layer by layer."""
    ffns = [module for module in decoder.modules() if isinstance(module, SparseFFN)]
    return [ffn.predictor for ffn in ffns if ffn.predictor is not None]


def _experts(
    moe: MoE, x: Tensor, residual: Tensor, thresholds: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    sent = moe.ops.route(x, moe.router.weight, moe.num_chosen).weights != 0  # [T, E]
    masks: list[Tensor] = []
    truths: list[Tensor] = []
    for i, expert in enumerate(moe.experts):
        found = chosen(expert, x, residual, thresholds)
        if found is None:
            return None
        masks.append(found[0] & sent[:, i, None])
        truths.append(found[1] & sent[:, i, None])
    return torch.cat(masks, 1), torch.cat(truths, 1)
