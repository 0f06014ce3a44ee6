"""An artifact that is made layer by layer, beside its place: a run that is killed goes on from the
layers that it has finished."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from ..artifact import CONFIG, layer_file
from ..config import ModelError
from ..fields import Fields, Json, as_object, read_object
from .imitation import Chosen
from .output import write_json

BEGUN = "begun.json"  # what the run was begun with


class LayerParts:
    """`OUT.part`, until it becomes OUT."""

    def __init__(self, out: Path, begun: dict[str, object]) -> None:
        """Begin, or go on; raises ModelError, naming what an earlier run was begun with
        otherwise, or that nothing can be written."""
        self._out = out
        self.folder = out.with_name(out.name + ".part")
        path = self.folder / BEGUN
        if path.exists():
            self._check(read_object(path), as_object(json.loads(json.dumps(begun)), BEGUN))
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, begun)
        except OSError as error:
            raise ModelError(f"--out: {self.folder} cannot be written: {error}") from error

    def _check(self, before: Json, now: Json) -> None:
        for name in now:
            if before.get(name) != now[name]:
                raise ModelError(
                    f"{self.folder} was begun with {name}={before.get(name)!r}, now it is "
                    f"{now[name]!r}: go on as it was begun, or remove the folder"
                )

    def finished(self, layer: int) -> Chosen | None:
        """What a finished layer came to; None: it is to be made."""
        path = self._record(layer)
        if not path.exists() or not layer_file(self.folder, layer).exists():
            return None
        fields = Fields(read_object(path), str(path))
        return Chosen(**{name: fields.number(name, 0.0) for name in Chosen.__annotations__})

    def finish(self, layer: int, tensors: dict[str, Tensor], chosen: Chosen) -> None:
        """Keep a layer, its tensors first; raises ModelError where the disk is full."""
        path = layer_file(self.folder, layer)
        beside = path.with_name(path.name + ".part")
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, beside)
            os.replace(beside, path)
            write_json(self._record(layer), asdict(chosen))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"--out: {path} cannot be written: {error}") from error

    def write_config(self, config: dict[str, object]) -> None:
        """What makes an artifact of the layers."""
        try:
            write_json(self.folder / CONFIG, config)
        except OSError as error:
            raise ModelError(f"--out: {self.folder} cannot be written: {error}") from error

    def publish(self, num_layers: int) -> None:
        """Leave the artifact alone in the folder, and put it in its place."""
        for path in (self.folder / BEGUN, *map(self._record, range(num_layers))):
            path.unlink()
        try:
            if self._out.exists():
                self._out.rmdir()  # `check_destination` found it empty
            os.replace(self.folder, self._out)
        except OSError as error:
            raise ModelError(f"--out: {self._out} cannot be written: {error}") from error

    def _record(self, layer: int) -> Path:
        return self.folder / f"layer_{layer}.json"
