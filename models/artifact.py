"""A folder of separate predictors: what stands in it, and how they join a decoder.

Ours holds a config.json that names a type of `PREDICTORS`, and a `layer_{i}.safetensors` for each
layer. PowerInfer's holds `model_{i}.pt`, all low rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from .config import ModelError
from .decoder import Decoder
from .fields import Fields, Json, as_list, as_object, read_object
from .identity import Identity
from .sparsity.ffn import SparseFFN
from .sparsity.kinds import PREDICTORS
from .sparsity.predictor import Neurons, Tensors

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """What predictors cost a model on text that they were not made from."""

    text: str  # the file's name
    num_tokens: int
    kept: float  # share of the neurons that they keep
    active: float  # share that is truly not zero
    recall: float  # share of the truly active ones that they keep
    perplexity_exact: float
    perplexity: float
    nats: float  # KL(exact || approximate) of the next token
    greedy: float  # share of greedily decoded tokens before the first that differs

    @property
    def perplexity_change(self) -> float:
        return self.perplexity / self.perplexity_exact - 1

    def __str__(self) -> str:
        return (
            f"on {self.num_tokens:,} tokens of {self.text}: {self.kept:.1%} of the neurons kept "
            f"({self.active:.1%} are active), {self.recall:.1%} of the active ones among them, "
            f"perplexity {self.perplexity:.4g} for {self.perplexity_exact:.4g} "
            f"({self.perplexity_change:+.2%}), {self.nats:.3g} nats a token off, greedy text the "
            f"same for {self.greedy:.0%} of its tokens"
        )

    @classmethod
    def read(cls, json: Json, source: str) -> Measured:
        """Raises ModelError."""
        fields = Fields(json, source)
        numbers = {
            name: fields.number(name, 0.0)
            for name, kind in cls.__annotations__.items()
            if kind == "float"
        }
        return cls(text=fields.text("text", ""), num_tokens=fields.integer("num_tokens"), **numbers)


@dataclass(frozen=True, slots=True)
class Attached:
    """What a decoder was given."""

    kind: str
    source: str  # the folder's name
    thresholds: list[float]  # by layer
    measured: Measured | None  # None: by nobody before

    def __str__(self) -> str:
        return (
            f"separate {self.kind} predictors from {self.source} "
            f"(threshold {spanned(self.thresholds)})"
        )


def spanned(thresholds: list[float]) -> str:
    """One number where the layers have the same, or from the least to the largest."""
    low, high = min(thresholds), max(thresholds)
    return f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"


def layers_of(decoder: Decoder) -> list[SparseFFN]:
    """The FFNs that separate predictors can be given; raises ModelError where they cannot."""
    config = decoder.config
    if config.predictor:
        raise ModelError("this checkpoint has predictors of its own: its mask is part of the model")
    if not config.activation.is_sparse or config.num_experts:
        raise ModelError(f"separate predictors need a dense ReLU model, not {config.family}")
    ffns = [layer.get_submodule("ffn") for layer in decoder.layers]
    return [ffn for ffn in ffns if isinstance(ffn, SparseFFN)]


def neurons_of(ffn: SparseFFN) -> Neurons:
    return Neurons(ffn.gate_up.detach(), ffn.activation, ffn.threshold)


def attach(decoder: Decoder, directory: Path, served: Identity) -> Attached:
    """Give each layer its predictor of the folder; raises ModelError, naming what does not fit."""
    ffns = layers_of(decoder)
    settings = directory / CONFIG
    fields = Fields(read_object(settings, optional=True), str(settings))
    kind = fields.text("type", "low_rank")
    if kind not in PREDICTORS:
        known = ", ".join(PREDICTORS)
        raise ModelError(f"{settings}: type={kind!r} is none of {known}")
    if "type" in fields.json:
        Identity.read(fields).check(served, directory)
        thresholds = _thresholds(fields, len(ffns))
        layers = _own_layers(directory, len(ffns))
    else:
        thresholds = [fields.number("sparse_threshold", 0.0)] * len(ffns)
        layers = _powerinfer_layers(directory, len(ffns))
    for ffn, threshold, (where, tensors) in zip(ffns, thresholds, layers, strict=True):
        try:
            made = PREDICTORS[kind].of(tensors, neurons_of(ffn), threshold, decoder.ops)
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from error
        ffn.predictor = made
    return Attached(kind, directory.name, thresholds, _measured(fields))


def layer_file(directory: Path, layer: int) -> Path:
    return directory / f"layer_{layer}.safetensors"


def _thresholds(fields: Fields, num_layers: int) -> list[float]:
    where = f"{fields.source}: thresholds"
    found = as_list(fields.json.get("thresholds"), where)
    numbers = [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(found) or len(found) != num_layers:
        raise ModelError(f"{where} must be {num_layers} numbers, one a layer")
    return numbers


def _measured(fields: Fields) -> Measured | None:
    where = f"{fields.source}: measured"
    found = fields.json.get("measured")
    return None if found is None else Measured.read(as_object(found, where), where)


def _own_layers(directory: Path, num_layers: int) -> Iterator[tuple[Path, Tensors]]:
    """Each layer's file, and the tensors in it: none where there is no file. Raises ModelError."""
    for path in (layer_file(directory, i) for i in range(num_layers)):
        try:
            yield path, load_file(path) if path.exists() else {}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} is not a readable safetensors file: {error}") from error


def _powerinfer_layers(directory: Path, num_layers: int) -> Iterator[tuple[Path, Tensors]]:
    """The same of `model_{layer}.pt`."""
    for path in (directory / f"model_{i}.pt" for i in range(num_layers)):
        yield path, _read_pt(path)


def _read_pt(path: Path) -> Tensors:
    """The file is a pickle: `weights_only` keeps it from running code."""
    try:
        state: object = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing: a predictor folder holds one file per layer"
        ) from error
    except Exception as error:  # a damaged pickle fails in any way
        # Not torch's own message: it recommends to load the file without weights_only.
        raise ModelError(f"{path} is damaged, or holds more than tensors") from error
    tensors = {
        name: tensor
        for name, tensor in as_object(state, str(path)).items()
        if isinstance(tensor, Tensor) and tensor.dim() == 2
    }
    if not {"fc1.weight", "fc2.weight"} <= tensors.keys():
        raise ModelError(f"{path} does not hold the matrices fc1.weight and fc2.weight")
    return tensors
