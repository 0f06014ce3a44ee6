"""Measured rows on their way to a table: printed, and kept in Markdown and JSON after each one.

A run that is cut off keeps what it has measured.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `roof` is the share of what reading alone would allow; None: not known."""

    what: str  # decode, prefill, first token, host gap, crossover
    path: str  # sparse token, sparse union, masked dense, dense, generate, continuous ...
    batch: int
    context: int
    ms: float
    tokens_per_second: float
    roof: float | None = None
    active: float | None = None
    union: float | None = None
    chosen: bool = False  # the mode that calibration takes for this size
    note: str = ""
    attention: str = "full"  # all of the context, or the pages that bound or gate choose
    approximate: bool = False  # of the neurons: predictors in float8


HEAD = (
    "what", "path", "attention", "batch", "context", "ms", "tok/s", "of roof", "active", "union",
    "note",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    shares = ["" if v is None else f"{v:.1%}" for v in (row.roof, row.active, row.union)]
    said = ("chosen" if row.chosen else "", "approximate" if row.approximate else "", row.note)
    note = " ".join(filter(None, said))
    figures = [f"{row.ms:.3f}", f"{row.tokens_per_second:.0f}"]
    place = [row.attention, str(row.batch), str(row.context)]
    return [row.what, row.path, *place, *figures, *shares, note]


class Report:
    """Collects rows; with `out`, `out`.md and `out`.json always hold all that there are."""

    def __init__(self, title: str, facts: dict[str, str], out: Path | None) -> None:
        self.title, self.facts, self.out = title, facts, out
        self.rows: list[Row] = []
        self.notes: list[str] = []
        print(f"# {title}\n")
        for name, value in facts.items():
            print(f"{name}: {value}")
        print(_line(list(HEAD)), flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(_line(cells(row)), flush=True)
        self._keep()

    def note(self, text: str) -> None:
        """What was not measured and why, or a block of text that belongs to the run."""
        self.notes.append(text)
        print(text, flush=True)
        self._keep()

    def _keep(self) -> None:
        if self.out is None:
            return
        rows = [asdict(row) for row in self.rows]
        content = {"title": self.title, "facts": self.facts, "rows": rows, "notes": self.notes}
        _write(self.out.with_suffix(".json"), json.dumps(content, indent=1))
        _write(self.out.with_suffix(".md"), self.markdown())

    def markdown(self) -> str:
        lines = [f"# {self.title}", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", "| " + " | ".join(HEAD) + " |", "| " + " | ".join("---" for _ in HEAD) + " |"]
        lines += ["| " + " | ".join(cells(row)) + " |" for row in self.rows]
        for note in self.notes:
            lines += ["", f"```\n{note}\n```" if "\n" in note else f"- {note}"]
        return "\n".join(lines) + "\n"


def _line(values: list[str]) -> str:
    widths = (12, 14, 10, 6, 8, 10, 8, 8, 8, 8, 0)
    return "".join(f"{value:>{width}} " for value, width in zip(values, widths, strict=True))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}")
    whole.write_text(text)
    os.replace(whole, path)
