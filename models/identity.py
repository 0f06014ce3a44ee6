"""Which model an artifact was made for: so that what was learned beside one serves no other."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path

import torch

from . import recipe
from .config import ModelConfig, ModelError
from .fields import Fields, as_object, read_object
from .weights import Checkpoint

KEY = "base"
NOT_ITS_FUNCTION = ("dtype", "max_positions")  # the same weights may be stored or used otherwise


@dataclass(frozen=True, slots=True)
class Identity:
    """A model's shape, by its config's fields, and a hash that its weights alone have."""

    config: dict[str, object]
    weights: str

    @classmethod
    def of(cls, directory: Path, config: ModelConfig) -> Identity:
        """Of a checkpoint directory; reads one row of each tensor. Raises ModelError."""
        drawn = recipe.read(read_object(directory / "config.json"))
        return cls(_plain(config), str(drawn) if drawn else _fingerprint(Checkpoint(directory)))

    @classmethod
    def read(cls, artifact: Fields) -> Identity:
        """The base that an artifact's config.json names; raises ModelError."""
        where = f"{artifact.source}: {KEY}"
        base = as_object(artifact.json.get(KEY), where)
        config = as_object(base.get("config"), f"{where}: config")
        return cls(dict(config), Fields(base, where).text("weights", ""))

    def json(self) -> dict[str, object]:
        return {KEY: asdict(self)}

    def check(self, served: Identity, artifact: Path) -> None:
        """Raise ModelError, naming what differs, unless this is the model that is served."""
        names = sorted({*self.config, *served.config})
        pairs = {name: (self.config.get(name), served.config.get(name)) for name in names}
        differing = [f"{n}={a!r}, here {b!r}" for n, (a, b) in pairs.items() if a != b]
        if differing:
            raise ModelError(f"{artifact} was made for another model: {'; '.join(differing)}")
        if self.weights != served.weights:
            raise ModelError(
                f"{artifact} was made for another model: the same shape, but other weights "
                f"(hash {self.weights!r}, here {served.weights!r})"
            )


def _plain(config: ModelConfig) -> dict[str, object]:
    """The fields as JSON gives them back."""
    fields: dict[str, object] = asdict(config)
    for name in NOT_ITS_FUNCTION:
        del fields[name]
    return {n: v.value if isinstance(v, Enum) else v for n, v in fields.items()}


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Of the names, shapes and first rows of all tensors, however they lie in files: whatever
    trains a model further changes some of these rows."""
    digest = blake2b(digest_size=16)
    for name in sorted(checkpoint.names):
        row = checkpoint.first_row(name).contiguous()
        digest.update(f"{name} {checkpoint.shape(name)} {row.dtype}".encode())
        digest.update(row.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
