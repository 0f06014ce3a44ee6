"""The model card of what `sparsify` writes, from the record of its own run."""
# pyright: basic

from __future__ import annotations

from textwrap import fill


def model_card(record: dict) -> str:
    """README.md of the checkpoint; `record` is what sparsify.json holds."""
    plan, name = record["plan"], record["source"]
    dense = f"`relu(x Wg) * {'relu(x Wu)' if plan['activation'] == 'drelu' else 'x Wu'}`"
    mask = (
        f" A predictor of rank {plan['rank']} in each layer reads the residual before the norm, "
        "and its mask is part of the forward pass."
        if plan["rank"]
        else ""
    )
    what = (
        f"{name} with its SwiGLU, `silu(x Wg) * x Wu`, replaced by {dense}, then trained further."
        f"{mask} `turbosparse serve` computes exactly this function and skips what is zero."
    )
    recipe = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in plan.items())
    data = "\n".join(f"| {d['name']} | {d['weight']:g} |" for d in record["data"])
    return f"""# {name}, made sparse

{fill(what, 100)}

Made by `turbosparse sparsify` {record["versions"]["turbosparse"]} on {record["hardware"]}:
{record["steps"]} steps, {record["tokens"]:,} tokens. The licence is the source's.

## What it cost and what it gave

{_results(record)}

## Recipe

| | |
| --- | --- |
{recipe}

| data | weight |
| --- | --- |
{data}

The whole record is `sparsify.json`.
"""


def _results(record: dict) -> str:
    measured, last = record["measured"], record["last"]
    rows = [("training, the last steps' loss", f"{last['task_loss']:.4f}")]
    names = {
        "source": "held-out text, loss before",
        "surgery": "right after the exchange, without training",
        "recovered": "after training, as it is served",
    }
    rows += [(names[key], f"{measured[key]['loss']:.4f}") for key in names if key in measured]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    layers = "\n".join(f"| {i} | {share:.1%} |" for i, share in enumerate(record["density"]))
    kept = "kept by its predictor" if record["plan"]["rank"] else "not zero"
    return f"""| loss, nats a token | |
| --- | --- |
{table}

| layer | neurons {kept} |
| --- | --- |
{layers}"""
