"""Draws tokens a second against the batch from the JSON of benchmarks/step.py, as a PNG.

    python benchmarks/plot.py results/step.json --context 512 --out docs/step.png

vLLM's points are from another run, on an H200, of the ordinary dense model of the same shape.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator

# vLLM 0.26.0, dense, bf16, dummy weights, context 512, its own CUDA graphs, one H200: tokens a
# second at batch 1, 2, 4 ... 128.
VLLM = {
    "turbosparse-mistral-7b": [211, 422, 829, 1618, 3124, 5671, 9901, 15151],
    "turbosparse-mixtral-47b": [127, 185, 278, 459, 681, 1286, 2558, 4613],
}
VLLM_CONTEXT = 512
SPARSE = ("token", "union", "masked")
LINES = {
    "sparse": ("turbosparse, sparse", "tab:red", "o-"),
    "float8": ("turbosparse, sparse, predictors in float8 (approximate)", "tab:orange", "d--"),
    "dense": ("turbosparse, ordinary dense model", "tab:blue", "s-"),
    "continuous": ("transformers, continuous batching", "tab:green", "^--"),
    "generate": ("transformers, generate", "tab:olive", "v--"),
}
Points = dict[int, float]  # batch -> tokens a second


def lines(rows: list[dict[str, object]], context: int) -> dict[str, Points]:
    """The points of each line; `sparse` takes the fastest mode, as serving does."""
    found: dict[str, Points] = {}
    for row in rows:
        if row["what"] != "decode" or row["context"] != context:
            continue
        if row.get("attention", "full") != "full":
            continue
        path, batch, speed = row["path"], row["batch"], row["tokens_per_second"]
        points = found.setdefault("sparse" if path in SPARSE else str(path), {})
        place = int(str(batch))
        points[place] = max(points.get(place, 0.0), float(str(speed)))
    return found


def draw(rows: list[dict[str, object]], model: str, title: str, context: int, out: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4.5), dpi=150)
    for path, points in lines(rows, context).items():
        label, colour, style = LINES[path]
        batches = sorted(points)
        axes.plot(batches, [points[b] for b in batches], style, color=colour, label=label)
    if context == VLLM_CONTEXT and model in VLLM:
        batches = [2**i for i in range(len(VLLM[model]))]
        label = "vLLM 0.26.0, ordinary dense model (another run, one H200)"
        axes.plot(batches, VLLM[model], "x", color="tab:gray", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("requests decoding at once")
    axes.set_ylabel("tokens a second")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of one model")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in args.results]
    models = {run["facts"]["model"].partition(",")[0] for run in runs}
    if len(models) != 1:
        raise SystemExit(f"these are of different models: {', '.join(sorted(models))}")
    (model,) = models
    rows = [row for run in runs for row in run["rows"]]
    if not lines(rows, args.context):
        raise SystemExit(f"no decode step at context {args.context} in {args.results}")
    machine = runs[0]["facts"]["machine"]
    title = f"{model}, synthetic weights, context {args.context}, {machine}"
    draw(rows, model, title, args.context, args.out)


if __name__ == "__main__":
    main()
