"""Which neurons a token needs.

A predictor that stands in the checkpoint's own forward is part of the function; one that was
trained beside it makes the model approximate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Activation, ModelError
from ..kernels import reference, reference_predict
from ..kernels.ops import Ops
from ..kernels.reference_predict import Scales
from ..layers import Linear

Tensors = Mapping[str, Tensor]


class NeuronPredictor(Protocol):
    """Chooses neurons from the residual before the norm and the FFN's input after it.

    Where it does not read the second, `reads_normed` is false, and any tensor may stand there.
    """

    threshold: float
    reads_normed: bool

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """[T, hidden] both -> [T, N] bool, True where the neuron's score is above the threshold.

        thresholds [T] float32 stand in for the predictor's own, token by token; NaN leaves it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Neurons:
    """The layer that a separate predictor is made for."""

    gate_up: Tensor  # [N, 2 * hidden]
    activation: Activation
    threshold: float  # FATReLU's

    @property
    def hidden_size(self) -> int:
        return self.gate_up.shape[1] // 2


class SeparatePredictor(NeuronPredictor, Protocol):
    """What a type of separate predictors needs besides, to be a file: see `PREDICTORS`."""

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        """What `select` holds against the threshold, [T, N] float32: slow, to set thresholds by."""
        ...

    @classmethod
    def of(cls, tensors: Tensors, neurons: Neurons, threshold: float, ops: Ops) -> Self:
        """From a layer's tensors, on the device and of the type of its weights; raises
        ModelError, naming the one that is missing or does not fit."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The way back from `of`."""
        ...


def deciding(own: float, given: Tensor | None) -> float | Tensor:
    """The thresholds of a step's tokens: a predictor's own, or those given, [T], but for NaN."""
    return own if given is None else torch.where(given.isnan(), own, given)


class LowRankPredictor(nn.Module):
    """`fc2(relu(fc1(residual))) > threshold`: TurboSparse's, and PowerInfer's separate ones.

    The input is the residual *before* the post-attention norm, as in the published forward
    (arXiv 2406.05955); feeding it the normed one gives a plausible, wrong mask.
    """

    reads_normed = False

    def __init__(
        self, hidden_size: int, rank: int, num_neurons: int, ops: Ops, threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.ops = ops
        self.threshold = threshold
        self.fc1 = Linear(hidden_size, rank)
        self.fc2 = Linear(rank, num_neurons)

    @classmethod
    def of(cls, tensors: Tensors, neurons: Neurons, threshold: float, ops: Ops) -> Self:
        fc1, fc2 = (matrix(tensors, f"{name}.weight") for name in ("fc1", "fc2"))
        like, hidden = neurons.gate_up, neurons.hidden_size
        if (fc1.shape[1], *fc2.shape) != (hidden, len(like), len(fc1)):
            raise ModelError(
                f"fc1 {list(fc1.shape)} and fc2 {list(fc2.shape)} do not fit hidden_size {hidden} "
                f"and {len(like)} neurons"
            )
        with torch.device("meta"):
            made = cls(hidden, len(fc1), len(like), ops, threshold)
        for layer, value in ((made.fc1, fc1), (made.fc2, fc2)):
            value = value.to(like.device, like.dtype).contiguous()
            layer.weight = nn.Parameter(value, requires_grad=False)
        return made

    def tensors(self) -> dict[str, Tensor]:
        assert self.scales is None, "what is kept is what was trained"
        return {"fc1.weight": self.fc1.weight.detach(), "fc2.weight": self.fc2.weight.detach()}

    def widen(self, multiple: int) -> None:
        """Make the rank a multiple: rows of zeros in fc1 and columns of zeros in fc2 change no
        score, and whole tiles at aligned addresses are read faster on a GPU."""
        missing = -self.fc1.weight.shape[0] % multiple
        if missing:
            for layer, sides in ((self.fc1, (0, 0, 0, missing)), (self.fc2, (0, missing))):
                wider = F.pad(layer.weight, sides)
                layer.weight = nn.Parameter(wider, requires_grad=False)

    def round(self) -> None:
        """Both matrices in float8 from now on, a scale for each row: half the bytes of 16-bit ones,
        and another function."""
        for layer in (self.fc1, self.fc2):
            rounded = reference_predict.float8(layer.weight)
            layer.weight, layer.scale = (nn.Parameter(t, requires_grad=False) for t in rounded)

    @property
    def scales(self) -> Scales | None:
        """Of the rows of fc1 and fc2, once they are rounded."""
        first, second = self.fc1.scale, self.fc2.scale
        return None if first is None or second is None else (first, second)

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        threshold = deciding(self.threshold, thresholds)
        return self.ops.predict(residual, self.fc1.weight, self.fc2.weight, threshold, self.scales)

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        weights = (self.fc1.weight, self.fc2.weight)
        return reference_predict.low_rank_scores(residual, *weights, self.scales)


class OraclePredictor(nn.Module):
    """The neurons that are truly not zero. Tells a wrong kernel from a wrong prediction.

    Its score is how far from zero a neuron's value is, so a threshold above zero keeps the larger
    ones. gate_up [N, 2 * hidden] is the layer's own, shared.
    """

    gate_up: Tensor
    reads_normed = True

    def __init__(
        self, gate_up: Tensor, activation: Activation, fatrelu: float, threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("gate_up", gate_up.detach(), persistent=False)
        self.activation = activation
        self.fatrelu = fatrelu
        self.threshold = threshold

    @classmethod
    def of(cls, tensors: Tensors, neurons: Neurons, threshold: float, ops: Ops) -> Self:
        return cls(neurons.gate_up, neurons.activation, neurons.threshold, threshold)

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def select(self, residual: Tensor, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        threshold = deciding(self.threshold, thresholds)
        return reference_predict.above(self.scores(residual, x), threshold)

    def scores(self, residual: Tensor, x: Tensor) -> Tensor:
        return reference.gated(x, self.gate_up, self.activation, self.fatrelu).abs().float()


def matrix(tensors: Tensors, name: str, num_dims: int = 2) -> Tensor:
    """The tensor of that name, or ModelError."""
    found = tensors.get(name)
    if found is None:
        raise ModelError(f"{name} is missing")
    if found.dim() != num_dims:
        raise ModelError(f"{name} has shape {list(found.shape)}, not {num_dims} dimensions")
    return found


def recall(mask: Tensor, true_mask: Tensor) -> float:
    """Share of the truly active neurons that a mask keeps; bool, any one shape. 1 if none is."""
    active = torch.count_nonzero(true_mask).item()
    return torch.count_nonzero(mask & true_mask).item() / active if active else 1.0
