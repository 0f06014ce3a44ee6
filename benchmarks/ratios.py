"""What each sparsity is worth, alone and both: decode steps over those of the ordinary model.

Knows rows, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from rows import Row

HEAD = (
    "batch", "context", "attention", "neither ms", "tok/s", "FFN only", "attention only", "both",
    "both ms", "tok/s",
)  # fmt: skip


def table(rows: Sequence[Row], dense: str) -> str | None:
    """Speeds as multiples of neither's, by batch, context and way to choose pages; None where
    nothing can be compared. `dense` is the path of the ordinary model.

    Of the sparse model's modes the one that serving takes, or where that was not measured the
    fastest; never one whose neurons are chosen approximately. A way that was not measured is left
    blank.
    """
    steps = [row for row in rows if row.what == "decode"]
    lines: list[str] = []
    for context, batch in dict.fromkeys((row.context, row.batch) for row in steps):
        here = [row for row in steps if (row.context, row.batch) == (context, batch)]
        neither = _find(here, "full", dense)
        if neither is None:
            continue
        ffn = _sparse(here, "full", dense)
        ways = [a for a in dict.fromkeys(row.attention for row in here) if a != "full"]
        for way in ways or (["full"] if ffn else []):
            found = (
                (None, None)
                if way == "full"
                else (_find(here, way, dense), _sparse(here, way, dense))
            )
            cells = [str(batch), str(context), way, *_figures(neither)]
            cells += [_times(neither, row) for row in (ffn, *found)]
            lines.append(_line([*cells, *_figures(found[1])]))
    if not lines:
        return None
    title = "speeds over the ordinary dense model with full attention (neither)"
    return "\n".join([title, _line(HEAD), *lines])


def _find(rows: list[Row], attention: str, path: str) -> Row | None:
    return next((r for r in rows if (r.attention, r.path) == (attention, path)), None)


def _sparse(rows: list[Row], attention: str, dense: str) -> Row | None:
    ours = [row for row in rows if row.attention == attention and row.active is not None]
    ours = [row for row in ours if not row.approximate]
    return max(ours, key=lambda row: (row.chosen, -row.ms), default=None)


def _times(neither: Row, row: Row | None) -> str:
    return "" if row is None else f"{neither.ms / row.ms:.2f}x"


def _figures(row: Row | None) -> tuple[str, str]:
    return ("", "") if row is None else (f"{row.ms:.3f}", f"{row.tokens_per_second:.0f}")


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{max(8, len(name))}}" for cell, name in zip(cells, HEAD, strict=True))
