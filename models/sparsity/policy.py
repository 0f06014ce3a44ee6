"""Which FFN mode a step runs in: a function of its token count alone, measured on this machine."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from ..batch import FfnMode


@dataclass(frozen=True, slots=True)
class FfnPolicy:
    """`modes[i]` serves steps of up to `sizes[i]` tokens; the last one also all larger.

    `seconds` is what it was chosen by, for people: empty where nothing was measured.
    """

    sizes: tuple[int, ...]
    modes: tuple[FfnMode, ...]
    seconds: dict[int, dict[FfnMode, float]] = field(
        default_factory=dict[int, dict[FfnMode, float]], compare=False
    )

    @classmethod
    def always(cls, mode: FfnMode) -> FfnPolicy:
        return cls((1,), (mode,))

    @classmethod
    def fastest(cls, seconds: dict[int, dict[FfnMode, float]]) -> FfnPolicy:
        """The fastest mode of each measured size, sizes of the same answer joined.

        `seconds[num_tokens][mode]`; of equals the first in `FfnMode`.
        """
        sizes: list[int] = []
        modes: list[FfnMode] = []
        for size in sorted(seconds):
            times = seconds[size]
            best = min((mode for mode in FfnMode if mode in times), key=times.__getitem__)
            if modes and modes[-1] is best:
                sizes[-1] = size
            else:
                sizes.append(size)
                modes.append(best)
        return cls(tuple(sizes), tuple(modes), seconds)

    def mode_for(self, num_tokens: int) -> FfnMode:
        return self.modes[min(bisect_left(self.sizes, num_tokens), len(self.modes) - 1)]

    def table(self) -> dict[int, str]:
        """Largest step -> mode, for people."""
        return {size: mode.value for size, mode in zip(self.sizes, self.modes, strict=True)}
