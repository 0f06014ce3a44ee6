"""Makes one layer's separate predictor from what its FFN reads, and sets its threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.ops import Ops
from ..layers import Norm
from ..sparsity.predictor import Neurons, OraclePredictor, SeparatePredictor
from ..sparsity.sketch import sketch_of
from .mlp import Predictor

ROWS = 512  # tokens that are looked at at once where nothing is learned


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a predictor depends on besides the model and the text."""

    kind: str = "low_rank"
    rank: int = 0
    bits: int = 4
    group: int = 64
    recall: float = 0.95
    epochs: int = 4
    batch: int = 256  # tokens
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    seed: int = 0

    def described(self) -> dict[str, int]:
        """What an artifact says of its kind."""
        if self.kind == "sketch":
            return {"bits": self.bits, "group": self.group}
        return {"rank": self.rank}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's FFN, for whoever imitates it."""

    index: int
    neurons: Neurons
    norm: Norm
    ops: Ops

    def normed(self, residual: Tensor) -> Tensor:
        return self.ops.rms_norm(residual, self.norm.weight, self.norm.eps)

    def truth(self, x: Tensor) -> Tensor:
        """The neurons that are not zero: x [T, hidden] -> [T, N] bool."""
        layer = self.neurons
        oracle = OraclePredictor(layer.gate_up, layer.activation, layer.threshold)
        return oracle.select(x, x)

    def rows(self, residuals: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """residuals [T, hidden] of the host, some rows at a time: they, normed, and the truth."""
        for part in torch.split(residuals, ROWS):
            residual = part.to(self.neurons.gate_up.device)
            x = self.normed(residual)
            yield residual, x, self.truth(x)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold and what it does to the tokens that it was set by."""

    threshold: float
    recall: float
    kept: float
    active: float

    def __str__(self) -> str:
        return (
            f"{self.kept:.1%} kept for {self.recall:.1%} of the {self.active:.1%} active, "
            f"threshold {self.threshold:.3g}"
        )


Tensors = dict[str, Tensor]


def imitate(layer: Layer, residuals: Tensor, recipe: Recipe) -> Tensors:
    """A `low_rank` predictor's tensors, trained to tell from residuals [T, hidden] of the host
    which neurons are not zero."""
    device = layer.neurons.gate_up.device
    sizes = layer.neurons.hidden_size, recipe.rank, len(layer.neurons.gate_up)
    generator = torch.Generator().manual_seed(recipe.seed * 1009 + layer.index)
    scale = _channel_scale(residuals).to(device)
    with torch.enable_grad():
        predictor = _initial(sizes, generator).to(device)
        optimizer = torch.optim.AdamW(
            predictor.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        truths = _truths(layer, residuals)
        order = _batches(len(residuals), recipe, generator)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _cosine(len(order)))
        for places in order:
            truth = np.unpackbits(truths[places.numpy()], axis=1, count=sizes[2])
            truth = torch.from_numpy(truth).to(device, torch.float32)
            scores = predictor(residuals[places].to(device, torch.float32) * scale)
            loss = F.binary_cross_entropy_with_logits(scores, truth, pos_weight=_balance(truth))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    fc1, fc2 = predictor.fc1.weight.detach(), predictor.fc2.weight.detach()
    return {"fc1.weight": fc1 * scale, "fc2.weight": fc2}


@torch.no_grad()
def _truths(layer: Layer, residuals: Tensor) -> NDArray[np.uint8]:
    """The active neurons of residuals [T, hidden], a bit each [T, N / 8]: computing them again in
    every epoch would take longer than learning from them."""
    rows = [np.packbits(truth.cpu().numpy(), axis=1) for _, _, truth in layer.rows(residuals)]
    return np.concatenate(rows)


def _initial(sizes: tuple[int, int, int], generator: torch.Generator) -> Predictor:
    predictor = Predictor(*sizes)
    for layer in (predictor.fc1, predictor.fc2):
        layer.weight.data.normal_(0, layer.in_features**-0.5, generator=generator)
    return predictor


def _channel_scale(residuals: Tensor) -> Tensor:
    """One over the root mean square of each channel [hidden]: some are a thousand times others,
    and would be all that the first steps learn from."""
    square = sum(part.float().square().sum(0) for part in torch.split(residuals, ROWS))
    assert isinstance(square, Tensor)
    return (square / len(residuals)).clamp(min=1e-12).rsqrt()


def _batches(num_tokens: int, recipe: Recipe, generator: torch.Generator) -> list[Tensor]:
    """Places of tokens for each step, all of them in each epoch."""
    epochs = [torch.randperm(num_tokens, generator=generator) for _ in range(recipe.epochs)]
    return [places for epoch in epochs for places in torch.split(epoch, recipe.batch)]


def _cosine(num_steps: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / num_steps))


def _balance(truth: Tensor) -> Tensor:
    """What a positive counts: between as much as a negative, and as much as all of them."""
    active = truth.mean().clamp(1e-4, 1 - 1e-4)
    return ((1 - active) / active).sqrt()


def draw_coarsely(layer: Layer, residuals: Tensor, recipe: Recipe) -> Tensors:
    """A `sketch` predictor's tensors. It learns nothing from the residuals."""
    return sketch_of(layer.neurons, recipe.bits, recipe.group)


MAKERS: dict[str, Callable[[Layer, Tensor, Recipe], Tensors]] = {
    "low_rank": imitate,
    "sketch": draw_coarsely,
}


@torch.no_grad()
def choose_threshold(
    predictor: SeparatePredictor, layer: Layer, residuals: Tensor, recall: float
) -> Chosen:
    """The largest threshold that keeps `recall` of what is active on residuals [T, hidden]."""
    found: list[Tensor] = []
    for residual, x, truth in layer.rows(residuals):
        found.append(predictor.scores(residual, x)[truth].cpu())
    active = torch.cat(found)
    num_neurons = len(layer.neurons.gate_up) * len(residuals)
    if not len(active):  # whatever it keeps is too much
        return Chosen(0.0, 1.0, 0.0, 0.0)
    least = active.sort().values[math.floor((1 - recall) * len(active))].item()
    threshold = float(np.nextafter(np.float32(least), -np.inf, dtype=np.float32))
    kept = 0
    for residual, x, _ in layer.rows(residuals):
        kept += int((predictor.scores(residual, x) > threshold).sum())
    return Chosen(
        threshold,
        recall=(active > threshold).double().mean().item(),
        kept=kept / num_neurons,
        active=len(active) / num_neurons,
    )
