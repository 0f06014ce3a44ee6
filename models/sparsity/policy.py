"""Which FFN mode a step runs in: a function of its token count alone, measured on this machine."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from ..batch import FfnMode


@dataclass(frozen=True, slots=True)
class FfnPolicy:
    """`modes[i]` serves steps of up to `sizes[i]` tokens; the last one also all larger."""

    sizes: tuple[int, ...]
    modes: tuple[FfnMode, ...]

    @classmethod
    def always(cls, mode: FfnMode) -> FfnPolicy:
        return cls((1,), (mode,))

    @classmethod
    def fastest(cls, seconds: dict[int, dict[FfnMode, float]]) -> FfnPolicy:
        """The fastest mode of each measured size, sizes of the same answer joined."""
        sizes: list[int] = []
        modes: list[FfnMode] = []
        for size in sorted(seconds):
            best = min(seconds[size], key=lambda mode: seconds[size][mode])
            if modes and modes[-1] is best:
                sizes[-1] = size
            else:
                sizes.append(size)
                modes.append(best)
        return cls(tuple(sizes), tuple(modes))

    def mode_for(self, num_tokens: int) -> FfnMode:
        return self.modes[min(bisect_left(self.sizes, num_tokens), len(self.modes) - 1)]

    def table(self) -> dict[int, str]:
        """Largest step -> mode, for people."""
        return {size: mode.value for size, mode in zip(self.sizes, self.modes, strict=True)}
