"""What a config.json says of a model whose weights are drawn on the device instead of read.

The key is `synthetic`. Knows no tensor: whoever describes such a model need not import torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .config import ModelError
from .fields import Fields, Json, as_object

KEY = "synthetic"


@dataclass(frozen=True, slots=True)
class Recipe:
    """`density` is the mean share of its neurons that a predictor of `rank` keeps; of rank 0, where
    there is none, the share whose gates open; None: every neuron counts."""

    seed: int = 0
    density: float | None = None
    rank: int = 0

    def __post_init__(self) -> None:
        if self.density is not None and not 0 < self.density < 1:
            raise ModelError(f"density={self.density} is not between 0 and 1")
        if self.rank < 0:
            raise ModelError(f"rank={self.rank} is negative")
        if self.rank and self.density is None:
            raise ModelError(f"rank={self.rank}: predictors need a density")

    def __str__(self) -> str:
        planted = ""
        if self.density is not None:
            which = "predictors planted to keep" if self.rank else "gates planted to open for"
            planted = f", {which} {self.density:.0%} of the neurons"
        return f"random weights of seed {self.seed}{planted}: for measuring speed alone"

    def json(self) -> dict[str, object]:
        """For config.json; `read` is the way back."""
        return {KEY: asdict(self)}


def read(config: Json) -> Recipe | None:
    """The recipe in a config.json; None for a model with weights of its own. Raises ModelError."""
    if KEY not in config:
        return None
    name = f"config.json: {KEY}"
    fields = Fields(as_object(config[KEY], name), name)
    seed, rank = (fields.json.get(field, 0) for field in ("seed", "rank"))
    if not isinstance(seed, int) or not isinstance(rank, int):
        raise ModelError(f"{name}: seed={seed!r} and rank={rank!r} must be integers")
    density = None if fields.json.get("density") is None else fields.number("density", 0.0)
    return Recipe(seed=seed, density=density, rank=rank)
