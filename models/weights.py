"""Reading safetensors checkpoints, one tensor at a time, and what each model weight is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .config import ModelError
from .fields import as_object, read_object


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
        """The model weight, in the checkpoint's dtype; raises ModelError."""
        tensors = [checkpoint.read(name) for name in self.names]
        if len(tensors) == 1:
            return tensors[0].T if self.layout is Layout.TRANSPOSED else tensors[0]
        try:
            return torch.cat(tensors, dim=1 if self.layout is Layout.NEURONS else 0)
        except (RuntimeError, IndexError) as error:
            shapes = [list(tensor.shape) for tensor in tensors]
            raise ModelError(
                f"{' + '.join(self.names)}: shapes {shapes} do not fit together"
            ) from error

    def take_apart(self, value: Tensor, rows: list[int]) -> list[Tensor]:
        """The way back from `assemble`, as views; `rows` of each where one lies below the other."""
        if self.layout is Layout.TRANSPOSED:
            return [value.T]
        if self.layout is Layout.NEURONS:
            return list(value.chunk(len(self.names), dim=1))
        return [value] if len(self.names) == 1 else list(torch.split(value, rows))


class Slice(Protocol):
    """A tensor that has not been read."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class File(Protocol):
    """What `safe_open` gives; its own types are not declared."""

    def keys(self) -> list[str]: ...

    def get_tensor(self, name: str, /) -> Tensor: ...

    def get_slice(self, name: str, /) -> Slice: ...


class Checkpoint:
    """The tensors of a directory: `model.safetensors` or shards with their index.

    Tensors are mapped and read when asked for.
    """

    def __init__(self, directory: Path) -> None:
        """Raises ModelError when there is no readable safetensors checkpoint."""
        self._open: dict[Path, File] = {}
        self._files = self._tensor_files(directory)

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> Tensor:
        return self._handle(self._files[name]).get_tensor(name)

    def shape(self, name: str) -> list[int]:
        return self._handle(self._files[name]).get_slice(name).get_shape()

    def first_row(self, name: str) -> Tensor:
        return self._handle(self._files[name]).get_slice(name)[:1]

    def _tensor_files(self, directory: Path) -> dict[str, Path]:
        """Where each tensor is; every file is opened, so that a lost shard is told at once."""
        single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
        if index.is_file():
            files = {directory / name for name in _shards(index)}
        elif single.is_file():
            files = {single}
        else:
            raise ModelError(
                f"{directory} holds neither {single.name} nor {index.name}; "
                "only safetensors checkpoints are read"
            )
        return {name: file for file in sorted(files) for name in self._handle(file).keys()}  # noqa: SIM118

    def _handle(self, path: Path) -> File:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt", device="cpu")
            except FileNotFoundError as error:
                raise ModelError(f"{path} is named in the index and is not there") from error
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
        return self._open[path]


def _shards(index: Path) -> set[str]:
    """The file names in a `model.safetensors.index.json`."""
    shards = set(as_object(read_object(index).get("weight_map"), f"{index}: weight_map").values())
    names = {name for name in shards if isinstance(name, str) and Path(name).name == name}
    if names != shards or not names:
        raise ModelError(f"{index}: weight_map must map tensors to files beside it")
    return names


def assign(model: nn.Module, name: str, value: Tensor) -> None:
    """Put an inference weight in the place that was built for it on `meta`."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


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
