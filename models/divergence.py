"""How far separate predictors take a model from its own function, measured on random tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .decoder import Decoder
from .neurons import chosen
from .sequence import Observed, observe, random_ids

NUM_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Divergence:
    """Means over tokens and layers."""

    num_tokens: int
    kept: float  # share of the neurons
    recall: float  # share of the neurons that are not zero
    nats: float  # KL(exact || approximate) of the next token

    def __str__(self) -> str:
        return (
            f"on {self.num_tokens} random tokens: {self.kept:.1%} of the neurons kept, "
            f"{self.recall:.1%} of the active ones among them, {self.nats:.3g} nats a token off"
        )


def baseline(decoder: Decoder) -> Observed:
    """The exact model on the tokens that `measure` uses, before predictors are attached."""
    return observe(decoder, random_ids(decoder, NUM_TOKENS))


@torch.inference_mode()
def measure(decoder: Decoder, exact: Observed) -> Divergence:
    """Hold a decoder with predictors against its `baseline`."""
    seen = baseline(decoder)
    kept, active, hits = 0.0, 0, 0
    for layer, (x, residual) in zip(decoder.layers, seen.ffn_inputs, strict=True):
        found = chosen(layer.get_submodule("ffn"), x, residual)
        assert found is not None, "predictors are attached to sparse layers alone"
        mask, truth = found
        kept += mask.float().mean().item() / len(decoder.layers)
        active += int(truth.sum())
        hits += int((mask & truth).sum())
    log_exact, log_seen = exact.logits.log_softmax(-1), seen.logits.log_softmax(-1)
    return Divergence(
        num_tokens=len(seen.logits),
        kept=kept,
        recall=hits / active if active else 1.0,
        nats=(log_exact.exp() * (log_exact - log_seen)).sum(-1).mean().item(),
    )
