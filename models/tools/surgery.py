"""A decoder of transformers whose feed-forward layers give way to ones that learn what matters.

Knows no data, no optimiser and no file but the model's own.
"""
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..config import Activation, ModelError
from .mlp import MLP, Predictor, beyond


@dataclass(frozen=True, slots=True)
class Phase:
    """What the layers do in a step: the mask in the forward pass or not, and what they pay."""

    masked: bool = False
    target: float = 0.0  # share of the neurons that may be kept for nothing
    imitation: float = 0.0
    pressure: float = 0.0


class Cost(torch.autograd.Function):
    """y as it is; backward as if `cost` had been added to the loss that y flows into.

    A layer's own losses so need no way out through transformers' decoder. And their gradient comes
    with that of y: by then FSDP has gathered the layer again, and checkpointing has recomputed it.
    """

    @staticmethod
    def forward(ctx, y: Tensor, cost: Tensor) -> Tensor:
        ctx.cost = cost.new_ones(cost.shape)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, ctx.cost


class FeedForward(nn.Module):
    """Stands in an MLP's place, and takes the residual: the norm before it is in here."""

    statistics: Tensor  # [imitation, kept, lost] of the last forward pass

    def __init__(self, norm: nn.Module, mlp: MLP) -> None:
        super().__init__()
        self.norm, self.mlp = norm, mlp
        self.phase = Phase()

    def forward(self, residual: Tensor) -> Tensor:
        phase = self.phase
        y, statistics = self.mlp(self.norm(residual), residual, phase.masked)
        self.statistics = statistics.detach()
        imitation, kept, _ = statistics.unbind()
        excess = beyond(kept, phase.target)
        return Cost.apply(y, phase.imitation * imitation + phase.pressure * excess)


def load_dense(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model as transformers has it; raises ModelError where its weights do not fit."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{directory} cannot be loaded: {error}") from error
    model, found = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, found.get(kind) or ())):
            raise ModelError(f"{directory}: {kind.replace('_', ' ')}: {', '.join(names[:5])}")
    model.config.use_cache = False
    return model


def make_sparse(model: PreTrainedModel, activation: Activation, rank: int) -> None:
    """Exchange every layer's SwiGLU in place; its projections and its norm are taken over."""
    decoder: Any = model.get_decoder()
    for layer in decoder.layers:
        dense = layer.mlp
        neurons, hidden = dense.gate_proj.weight.shape
        with torch.device("meta"):
            mlp = MLP(hidden, neurons, 0, activation)
        mlp.gate_proj, mlp.up_proj, mlp.down_proj = dense.gate_proj, dense.up_proj, dense.down_proj
        mlp.predictor = Predictor(hidden, rank, neurons) if rank else None
        layer.mlp = FeedForward(layer.post_attention_layernorm, mlp)
        layer.post_attention_layernorm = nn.Identity()


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    return [module for module in model.modules() if isinstance(module, FeedForward)]


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only what lies between layers, and compute a layer again when its gradient comes."""
    # Renamed on the way through transformers 5.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def enter(model: nn.Module, phase: Phase) -> None:
    for layer in feed_forwards(model):
        layer.phase = phase


def activate(model: nn.Module, activation: Activation) -> None:
    for layer in feed_forwards(model):
        layer.mlp.activation = activation
