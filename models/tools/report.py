"""An evaluation as one page for people, from its JSON alone: no script, no network."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import page_figures
from .charts import Axis, Figure, Plot, linear, percent, plain
from .verdict import Record, change, choices_on, nats, perplexity, run_named
from .verdict import percent as share

FUNCTIONS = {
    "exact": "as served",
    "dense": "the same, every neuron computed",
    "mask off": "another function: no mask",
    "approximate": "what is dropped is not computed",
}


def page(record: Record) -> str:
    """The whole of `evaluation.html`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "share": share,
        "nats": nats,
        "perplexity": perplexity,
        "change": change,
        "tokens": "{:,}".format,
    }
    return environment.get_template("report.jinja").render(
        record,
        functions=FUNCTIONS,
        figures=_figures(record),
        page_figures=page_figures.figures(record["attention"]),
        kinds=choices_on(record["attention"]["text"] or {}),
        shown=_shown(record),
        exact=run_named(record, "exact"),
    )


def _shown(record: Record) -> Record | None:
    """The run whose neurons are drawn: the one that skips."""
    return run_named(record, "approximate") or run_named(record, "exact")


def _figures(record: Record) -> list[Figure]:
    """The plots, each with a heading, a sentence and its legend of (class, name)."""
    shown = _shown(record)
    if shown is None or shown["skipping"] is None:
        return []
    found: Record = shown["skipping"]
    figures = [_layers(found), _union(found), _hottest(found)]
    trade = _trade(record)
    return [*figures, *([trade] if trade else [])]


def _layers(found: Record) -> Figure:
    layers: list[Record] = found["layers"]
    kept = [layer["kept"] for layer in layers]
    active = [layer["active"] for layer in layers]
    every = max(1, len(layers) // 12)
    ticks = list(range(0, len(layers), every))
    x = Axis("layer", -0.7, len(layers) - 0.3, ticks)
    y = linear("share of the neurons", 0, max([*kept, *active, 0.01]), percent)
    names = [
        f"layer {i}: {share(kept[i])} kept, {share(active[i])} active" for i in range(len(kept))
    ]
    plot = Plot("Neurons kept and active, layer by layer", x, y).bars(kept, "main", names)
    plot.dots(list(enumerate(active)), "second", names)
    return Figure(
        "Density by layer",
        "How much of each layer is computed for one token, and how much is truly not zero.",
        [("main", "kept"), ("second", "truly active")],
        plot,
    )


def _union(found: Record) -> Figure:
    union = {int(size): value for size, value in found["union"].items()}
    sizes = sorted(union)
    by_layer = {int(size): values for size, values in found["union_by_layer"].items()}
    x = Axis("unrelated tokens together", 1, max(sizes[-1], 2), sizes, plain, doubling=True)
    plot = Plot("Neurons that a batch needs", x, linear("share of the neurons", 0, 1, percent))
    if sizes[0] == 1:
        plot.line([(float(n), _independent(by_layer[1], n)) for n in sizes], "guide")
    for layer in range(len(found["layers"])):
        plot.line([(float(n), by_layer[n][layer]) for n in sizes], "faint")
    points = [(float(n), union[n]) for n in sizes]
    names = [f"{n} tokens: {share(union[n])}" for n in sizes]
    plot.line(points, "main").dots(points, "main", names)
    return Figure(
        "What a batch needs",
        "Sparsity pays as long as this is low: a batch reads what any of its tokens needs.",
        [("main", "mean"), ("faint", "each layer"), ("guide", "if tokens were independent")],
        plot,
    )


def _independent(kept: list[float], num_tokens: int) -> float:
    """What so many tokens would need, if each drew its neurons without regard to the others."""
    return sum(1 - (1 - share) ** num_tokens for share in kept) / len(kept)


def _hottest(found: Record) -> Figure:
    curve = [(0.0, 0.0), *((float(s), value) for s, value in found["hottest"].items())]
    by_layer = {float(s): values for s, values in found["hottest_by_layer"].items()}
    ticks = [i / 5 for i in range(6)]
    x = Axis("share of the neurons, hottest first", 0, 1, ticks, percent)
    y = Axis("share of all that is kept", 0, 1, ticks, percent)
    plot = Plot("Hot and cold neurons", x, y).line([(0, 0), (1, 1)], "guide")
    for layer in range(len(found["layers"])):
        plot.line([(0, 0), *((s, values[layer]) for s, values in by_layer.items())], "faint")
    plot.line(curve, "main")
    return Figure(
        "Hot and cold neurons",
        "The steeper the curve begins, the more is gained by keeping few neurons close.",
        [("main", "mean"), ("faint", "each layer"), ("guide", "if all were as hot")],
        plot,
    )


def _trade(record: Record) -> Figure | None:
    """Divergence against density, where there is something to choose."""
    runs = [
        run
        for run in record["text"]["runs"]
        if run["name"] != "dense" and run["skipping"] is not None
    ]
    if len(runs) < 3:
        return None
    points = [(run["skipping"]["kept"], _off(run)) for run in runs]
    x = linear("share of the neurons kept", 0, max(p[0] for p in points), percent)
    y = linear("nats a token from exact", 0, max(p[1] for p in points))
    plot = Plot("Divergence from the exact model against the neurons kept", x, y)
    plot.line(sorted(points), "faint")
    for run, point in zip(runs, points, strict=True):
        swept = run["name"].startswith("threshold")
        name = run["name"].replace("threshold", "at")
        plot.dots([point], "second" if swept else "main", [name]).names([point], [name])
    return Figure(
        "Quality against density",
        "What other thresholds would keep, and how far they would take the model from itself.",
        [("main", "as named"), ("second", "at another threshold of the predictors")],
        plot,
    )


def _off(run: Record) -> float:
    return 0.0 if run["agreement"] is None else max(0.0, run["agreement"]["nats"])
