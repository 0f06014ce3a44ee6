"""How far what is approximate takes a model from its own function, measured on random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .decoder import Decoder
from .neurons import chosen
from .sequence import Observed, observe, random_ids

NUM_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the exact model did on the tokens that `measure` uses."""

    observed: Observed
    masks: list[Tensor | None]  # by layer, what it computes, [T, M] bool; None: nothing is skipped


@dataclass(frozen=True, slots=True)
class Divergence:
    """Means over tokens and layers. Neurons are counted on what the exact model's layers read."""

    num_tokens: int
    kept: float  # share of the neurons
    recall: float  # share of the neurons that the exact model computes, or that are not zero there
    nats: float  # KL(exact || approximate) of the next token

    def __str__(self) -> str:
        return (
            f"on {self.num_tokens} random tokens: {self.kept:.1%} of the neurons kept, "
            f"{self.recall:.1%} of the exact model's among them, {self.nats:.3g} nats a token off"
        )


@torch.inference_mode()
def baseline(decoder: Decoder) -> Baseline:
    """The exact model, before its predictors are attached or changed."""
    observed = observe(decoder, random_ids(decoder, NUM_TOKENS))
    return Baseline(observed, _masks(decoder, observed))


@torch.inference_mode()
def measure(decoder: Decoder, exact: Baseline) -> Divergence:
    """Hold a decoder with other predictors against its `baseline`."""
    kept, active, hits = 0.0, 0, 0
    for mask, wanted in zip(_masks(decoder, exact.observed), exact.masks, strict=True):
        assert mask is not None, "predictors are those of sparse layers alone"
        assert wanted is not None, "what skips neurons is a sparse layer"
        kept += mask.float().mean().item() / len(decoder.layers)
        active += int(wanted.sum())
        hits += int((mask & wanted).sum())
    config, before = decoder.config, exact.observed.logits
    after = observe(decoder, random_ids(decoder, NUM_TOKENS)).logits
    log_exact, log_seen = before.log_softmax(-1), after.log_softmax(-1)
    return Divergence(
        num_tokens=len(before),
        kept=kept * config.num_experts / config.experts_per_token if config.num_experts else kept,
        recall=hits / active if active else 1.0,
        nats=(log_exact.exp() * (log_exact - log_seen)).sum(-1).mean().item(),
    )


def _masks(decoder: Decoder, observed: Observed) -> list[Tensor | None]:
    """What each layer computes of what it was seen to read."""
    found = [
        chosen(layer.get_submodule("ffn"), x, residual)
        for layer, (x, residual) in zip(decoder.layers, observed.ffn_inputs, strict=True)
    ]
    return [None if masks is None else masks[0] for masks in found]
