"""Plots as SVG, coloured by the page that holds them. Knows no model.

The marks have classes (`main`, `second`, `faint`, `guide`), and the page's style says what they
look like: in light, in the dark, on paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 12, 44  # margins
Point = tuple[float, float]


def plain(value: float) -> str:
    return f"{value:g}"


def percent(value: float) -> str:
    """As few decimals as tell small shares apart."""
    return f"{value:.0%}" if value == 0 or abs(value) >= 0.01 else f"{value:.1%}"


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, with its ticks. `doubling`: each step to the right is twice as much."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    say: Callable[[float], str] = plain
    doubling: bool = False

    def place(self, value: float) -> float:
        """0 at its low end, 1 at its high one."""
        low, high, at = self.low, self.high, value
        if self.doubling:
            low, high, at = math.log2(low), math.log2(high), math.log2(value)
        return (at - low) / (high - low) if high > low else 0.5


def linear(
    label: str, low: float, high: float, say: Callable[[float], str] = plain, *, count: int = 5
) -> Axis:
    """An axis over these values whose ends and ticks are round numbers."""
    spread = (high - low) or abs(high) or 1.0
    rough = spread / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
    return Axis(label, ticks[0], ticks[-1], ticks, say)


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot with its heading, a sentence and the legend of (class, name)."""

    heading: str
    text: str
    legend: Sequence[tuple[str, str]]
    plot: Plot

    @property
    def svg(self) -> Markup:
        return Markup(self.plot.svg())


class Plot:
    """Marks over a grid; `svg()` is all of it. `title` says in words what is to be seen."""

    def __init__(self, title: str, x: Axis, y: Axis) -> None:
        self._title = title
        self._x, self._y = x, y
        self._marks: list[str] = []

    def line(self, points: Sequence[Point], kind: str) -> Plot:
        path = " ".join(f"{self._across(x):.1f},{self._down(y):.1f}" for x, y in points)
        self._marks.append(f'<polyline class="{kind}" points="{path}"/>')
        return self

    def dots(self, points: Sequence[Point], kind: str, names: Sequence[str]) -> Plot:
        """Points that tell their name when pointed at."""
        for (x, y), text in zip(points, names, strict=True):
            at = f'cx="{self._across(x):.1f}" cy="{self._down(y):.1f}"'
            told = f"<title>{escape(text)}</title>"
            self._marks.append(f'<circle class="{kind}" {at} r="3.6">{told}</circle>')
        return self

    def names(self, points: Sequence[Point], names: Sequence[str]) -> Plot:
        """What stands above each point, or beside it at the edges."""
        for (x, y), text in zip(points, names, strict=True):
            across = self._across(x)
            anchor = "start" if across < LEFT + 40 else "end" if across > WIDTH - 60 else "middle"
            place = f'x="{across:.1f}" y="{max(TOP, self._down(y) - 9):.1f}"'
            self._marks.append(
                f'<text class="name" {place} text-anchor="{anchor}">{escape(text)}</text>'
            )
        return self

    def bars(self, values: Sequence[float], kind: str, names: Sequence[str]) -> Plot:
        """One bar at each of 0, 1, 2 ... on the x axis."""
        width = 0.72 * (self._across(1) - self._across(0))
        for i, (value, text) in enumerate(zip(values, names, strict=True)):
            top = self._down(value)
            place = f'x="{self._across(i) - width / 2:.1f}" y="{top:.1f}"'
            size = f'width="{width:.1f}" height="{self._down(self._y.low) - top:.1f}"'
            told = f"<title>{escape(text)}</title>"
            self._marks.append(f'<rect class="{kind}" {place} {size} rx="1.5">{told}</rect>')
        return self

    def svg(self) -> str:
        box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._title)}"'
        return f"<svg {box}>{''.join([*self._grid(), *self._marks])}</svg>"

    def _across(self, x: float) -> float:
        return LEFT + self._x.place(x) * (WIDTH - LEFT - RIGHT)

    def _down(self, y: float) -> float:
        return TOP + (1 - self._y.place(y)) * (HEIGHT - TOP - BOTTOM)

    def _grid(self) -> list[str]:
        floor, middle = HEIGHT - BOTTOM, TOP + (HEIGHT - TOP - BOTTOM) / 2
        drawn: list[str] = []
        for tick in self._y.ticks:
            down = self._down(tick)
            ends = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"'
            drawn.append(f'<line class="grid" {ends}/>')
            place = f'x="{LEFT - 7}" y="{down + 4:.1f}" text-anchor="end"'
            drawn.append(f"<text {place}>{escape(self._y.say(tick))}</text>")
        for tick in self._x.ticks:
            place = f'x="{self._across(tick):.1f}" y="{floor + 17}" text-anchor="middle"'
            drawn.append(f"<text {place}>{escape(self._x.say(tick))}</text>")
        across = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle"'
        drawn.append(f'<text class="axis" {across}>{escape(self._x.label)}</text>')
        turned = f'x="13" y="{middle}" text-anchor="middle" transform="rotate(-90 13 {middle})"'
        drawn.append(f'<text class="axis" {turned}>{escape(self._y.label)}</text>')
        return drawn
