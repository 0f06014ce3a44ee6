"""Reading safetensors checkpoints, one tensor at a time, and what each model weight is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .config import ModelError


class Layout(Enum):
    """How a model weight is put together from the checkpoint's tensors."""

    ROWS = "rows"  # one below the other; a single one as it is
    NEURONS = "neurons"  # a neuron's gate row beside its up row
    TRANSPOSED = "transposed"  # down: a neuron's output becomes a row


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint tensors behind one model weight."""

    names: tuple[str, ...]
    layout: Layout = Layout.ROWS

    def assemble(self, checkpoint: Checkpoint) -> Tensor:
        tensors = [checkpoint.read(name) for name in self.names]
        match self.layout:
            case Layout.ROWS:
                return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
            case Layout.NEURONS:
                return torch.cat(tensors, dim=1)
            case Layout.TRANSPOSED:
                return tensors[0].T


class Checkpoint:
    """The tensors of a directory: `model.safetensors` or shards with their index.

    Use as a context manager. Tensors are mapped and read when asked for.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {name: directory / file for name, file in _tensor_files(directory).items()}
        self._stack = ExitStack()
        self._open: dict[Path, safe_open] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()
        self._stack.close()

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> Tensor:
        return self._handle(name).get_tensor(name)

    def shape(self, name: str) -> list[int]:
        return list(self._handle(name).get_slice(name).get_shape())

    def _handle(self, name: str) -> safe_open:
        path = self._files[name]
        if path not in self._open:
            if not path.is_file():
                raise ModelError(f"{path} is named in the index and is not there")
            try:
                handle = safe_open(path, framework="pt", device="cpu")
            except Exception as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
            self._open[path] = self._stack.enter_context(handle)
        return self._open[path]


def _tensor_files(directory: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return json.loads(index.read_text())["weight_map"]
    single = directory / "model.safetensors"
    if not single.is_file():
        raise ModelError(
            f"{directory} holds neither model.safetensors nor model.safetensors.index.json; "
            "only safetensors checkpoints are read"
        )
    try:
        with safe_open(single, framework="pt", device="cpu") as handle:
            return dict.fromkeys(handle.keys(), single.name)
    except Exception as error:
        raise ModelError(f"{single} is not a readable safetensors file: {error}") from error


def check_names(expected: set[str], found: set[str], family: str) -> None:
    """Raise ModelError that names every missing and every unexpected tensor."""
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if not missing and not unexpected:
        return
    lines = [f"the checkpoint does not fit family {family!r}:"]
    lines += [f"  missing     {name}" for name in missing]
    lines += [f"  unexpected  {name}" for name in unexpected]
    if any(".predictor." in name for name in unexpected):
        lines.append(
            "  It carries neuron predictors, which are part of its function: it must be loaded "
            "with its own config.json (model_type 'bamboo' or 'turbosparsemixtral')."
        )
    raise ModelError("\n".join(lines))


def iter_pt_predictors(directory: Path, num_layers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(fc1 [r, hidden], fc2 [N, r]) of each `model_{layer}.pt`; pickles are read with weights_only."""
    for layer in range(num_layers):
        path = directory / f"model_{layer}.pt"
        if not path.is_file():
            raise ModelError(f"{path} is missing: a predictor folder holds one file per layer")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            yield state["fc1.weight"], state["fc2.weight"]
        except Exception as error:
            raise ModelError(
                f"{path} is not a predictor (fc1.weight, fc2.weight): {error}"
            ) from error
