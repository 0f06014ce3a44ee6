"""What sparse attention costs by its budget, as plots of an evaluation's JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .charts import Axis, Figure, Plot, Point, linear, percent, plain
from .verdict import Record, change, choices_on, nats
from .verdict import percent as share

MARKS = {"bound": "main", "gate": "second"}
MOST_TASKS = 2  # of the exam that are drawn
Curves = dict[str, list[Point]]  # by kind: (budget, value)


def figures(attention: Record) -> list[Figure]:
    """What was measured on the text, then what was asked in the exam."""
    text, exam = attention["text"], attention["exam"]
    on_text = [_recalled(text), _perplexity(text), _nats(text)] if text else []
    return [*on_text, *(_task(exam, task) for task in (_longest(exam) if exam else []))]


def _longest(exam: Record) -> list[str]:
    """The tasks with the longest contexts: those that no budget covers, but at least one."""
    tasks: dict[str, Record] = exam["tasks"]
    by_length = sorted(tasks, key=lambda task: -tasks[task]["longest"])
    largest = max(int(budget) for by_budget in exam["kinds"].values() for budget in by_budget)
    beyond = [task for task in by_length if tasks[task]["longest"] > largest]
    return beyond[:MOST_TASKS] or by_length[:1]


def _recalled(text: Record) -> Figure:
    best = [(float(budget), found["recall"]) for budget, found in text["best"].items()]
    curves = _curves(choices_on(text), lambda cost: cost["recall"])
    lowest = min(y for points in [*curves.values(), best] for _, y in points)
    y = linear("share of the attention", lowest, 1, percent)
    plot = Plot("Attention recalled against the budget", _budgets(best), y).line(best, "guide")
    return Figure(
        "Attention recalled",
        "How much of the attention falls on what is read, beside the most that could.",
        [*_draw(plot, curves, share), ("guide", "best possible")],
        plot,
    )


def _perplexity(text: Record) -> Figure:
    return _against_full(
        "Change in perplexity",
        "Against attention to all of the context: what it costs on text.",
        _curves(choices_on(text), lambda cost: round(cost["perplexity_change"], 4)),
        "change in perplexity",
        change,
        lambda value: f"{100 * value:+g}%" if value else "0",
    )


def _nats(text: Record) -> Figure:
    return _against_full(
        "Divergence",
        "KL(exact ‖ sparse attention) of the next token.",
        _curves(choices_on(text), lambda cost: max(0.0, cost["nats"])),
        "nats a token",
        nats,
        plain,
    )


def _against_full(
    heading: str,
    text: str,
    curves: Curves,
    label: str,
    say: Callable[[float], str],
    tick: Callable[[float], str],
) -> Figure:
    """Something that full attention has none of."""
    values = [y for points in curves.values() for _, y in points]
    x = _budgets(next(iter(curves.values())))
    y = linear(label, min(0.0, *values), max(0.0, *values), tick)
    plot = Plot(f"{heading} against the budget", x, y)
    return Figure(heading, text, _draw(plot, curves, say), plot)


def _task(exam: Record, task: str) -> Figure:
    full = exam["tasks"][task]
    curves = _curves(exam["kinds"], lambda scores: scores[task]["right"] / full["asked"])
    exact = full["right"] / full["asked"]
    some = next(iter(curves.values()))
    plot = Plot(
        f"Right answers of {task} against the budget",
        _budgets(some),
        linear("right answers", 0, 1, percent),
    )
    plot.line([(x, exact) for x, _ in some] if len(some) > 1 else [], "guide")
    return Figure(
        f"Exam: {task}",
        f"{full['asked']} questions, with contexts of up to {full['longest']:,} tokens.",
        [*_draw(plot, curves, share), ("guide", f"all of the context: {share(exact)}")],
        plot,
    )


def _curves(kinds: Record, value: Callable[[Record], float]) -> Curves:
    return {
        kind: [(float(budget), value(found)) for budget, found in by_budget.items()]
        for kind, by_budget in kinds.items()
    }


def _budgets(points: Sequence[Point]) -> Axis:
    ticks = [x for x, _ in points]
    return Axis("tokens read", ticks[0], ticks[-1], ticks, lambda n: f"{n:,.0f}", doubling=True)


def _draw(plot: Plot, curves: Curves, say: Callable[[float], str]) -> list[tuple[str, str]]:
    """A line with dots for each kind; returns their legend."""
    for kind, points in curves.items():
        names = [f"{kind}, {x:,.0f} tokens: {say(y)}" for x, y in points]
        plot.line(points, MARKS[kind]).dots(points, MARKS[kind], names)
    return [(MARKS[kind], kind) for kind in curves]
