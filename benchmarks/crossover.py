"""From which context on a page budget makes a decode step faster, and whether serving knows.

Three ways, one K/V and one CUDA graph each for all contexts, whose page tables are as wide as the
longest, as a server's are: `full` as where no budgets are offered, `kept` where they are and a
request reads all of its context all the same, and the budget. Serving takes `kept` up to the
context that it measures at start (`engine/attention.py`), and the budget beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from decode import Step, medians
from rows import Row
from torch import Tensor

from turbosparse.engine.attention import calibrated, prepare
from turbosparse.engine.config import EngineConfig
from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.decoder import Decoder

CONTEXTS = (2048, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
LEAST = 0.98  # of the speed of full attention, for what serving takes


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds of one step of `batch` requests at a context; `beyond`: serving's, in tokens."""

    batch: int
    context: int
    full: float
    kept: float
    budget: float
    beyond: int

    @property
    def chooses(self) -> bool:
        """Whether serving reads a budget here."""
        return self.context > self.beyond

    @property
    def speed(self) -> float:
        """Of what serving does, over full attention's."""
        return self.full / (self.budget if self.chooses else self.kept)

    def rows(self, path: str, attention: str) -> Iterable[Row]:
        ways = (("full", self.full), ("kept", self.kept), (attention, self.budget))
        taken = attention if self.chooses else "kept"
        for way, seconds in ways:
            figures = seconds * 1e3, self.batch / seconds
            yield Row(
                "crossover", path, self.batch, self.context, *figures, chosen=way == taken,
                attention=way,
            )  # fmt: skip


def serving_reads_in_full(
    decoder: Decoder, directory: Path, caches: list[LayerCache], budget: int, longest: int
) -> int:
    """Up to which context a server's requests read all of it, as the server finds it at start.

    It overwrites the caches. Raises ModelError for a budget that no server takes.
    """
    page_size = caches[0].k.shape[2]
    config = EngineConfig(
        model=str(directory), attention="bound", page_budget=budget, page_size=page_size
    )
    info = prepare(config, decoder, longest)
    assert info is not None
    info = calibrated(config, info, decoder, caches, longest)
    return info.reads_in_full(info.budget, info.share)


def points(
    step: Step, mode: FfnMode, contexts: Sequence[int], budget: int, beyond: int
) -> Iterable[Point]:
    """Each context that the step's pages hold, in turn."""
    ordinary, offering = (step.model(mode, summaries=kept) for kept in (False, True))
    ways = ((ordinary, None), (offering, None), (offering, budget))
    for context in contexts:
        runs = [_bound(model, step.batch(mode, read, context)) for model, read in ways]
        yield Point(step.size, context, *medians(runs, step.tables.device), beyond)


def _bound(model: Callable[[ForwardBatch], Tensor], batch: ForwardBatch) -> Callable[[], Tensor]:
    return lambda: model(batch)


def verdict(points: Sequence[Point]) -> str:
    """Of one batch size, contexts ascending: where choosing wins, and what serving makes of it."""
    batch, beyond = points[0].batch, points[0].beyond
    lost = [i for i, point in enumerate(points) if point.budget >= point.full]
    first = 0 if not lost else lost[-1] + 1
    wins = "at none of them" if first == len(points) else f"from {points[first].context} on"
    least = min(points, key=lambda point: point.speed)
    held = "" if least.speed >= LEAST else f": BELOW {LEAST}"
    return (
        f"batch {batch}: a budget is faster {wins}; serving takes it beyond {beyond}, and makes at "
        f"least {least.speed:.3f} of full attention's speed, at {least.context}{held}"
    )


def table(points: Sequence[Point], attention: str) -> str:
    """Milliseconds, speeds over full attention, and what serving takes."""
    ways = f"{'full':>9} {'kept':>9} {attention:>9}"
    lines = [f"{'batch':>6} {'context':>8} {ways} {'speed':>6}  serving takes"]
    for p in points:
        times = " ".join(f"{seconds * 1e3:9.3f}" for seconds in (p.full, p.kept, p.budget))
        taken = f"{attention if p.chooses else 'kept'}, {p.speed:.3f}"
        speed = f"{p.full / p.budget:6.2f}"
        lines.append(f"{p.batch:>6} {p.context:>8} {times} {speed}  {taken}")
    return "\n".join([*lines, verdict(points)])
