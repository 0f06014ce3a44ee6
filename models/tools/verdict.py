"""What an evaluation says, in sentences: the most important one first. Reads its JSON alone."""

from __future__ import annotations

from typing import Any

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}  # nats that rounding may cost
SMALLEST = 1e-6  # what fp32 can tell from nothing
Record = dict[str, Any]


def percent(share: float) -> str:
    return f"{share:.1%}"


def nats(value: float) -> str:
    """Two digits; what fp32 cannot tell from nothing is 0."""
    return "0" if abs(value) < SMALLEST else f"{value:.2g}"


def perplexity(value: float | str) -> str:
    """An infinite one is text in JSON."""
    return value if isinstance(value, str) else f"{value:.4g}" if value < 1e4 else f"{value:.2e}"


def change(share: float) -> str:
    """Of a perplexity: more, or less; nothing is +0.00%."""
    return f"{round(share, 4) + 0.0:+.2%}"


def run_named(record: Record, name: str) -> Record | None:
    runs: list[Record] = record["text"]["runs"] if record["text"] else []
    return next((run for run in runs if run["name"] == name), None)


def agrees(record: Record) -> bool | None:
    """Whether sparse and dense execution differ by rounding alone; None where nothing is sparse."""
    dense = run_named(record, "dense")
    if dense is None:
        return None
    return abs(dense["agreement"]["nats"]) <= TOLERANCE[record["model"]["dtype"]]


def verdict(record: Record) -> list[str]:
    """One sentence for each thing that was measured."""
    said: list[str] = []
    if record["text"]:
        said += [_execution(record), *_skipping(record), *_other_functions(record)]
    for name, tasks in record["exam"].items():
        right, asked = (sum(task[key] for task in tasks.values()) for key in ("right", "asked"))
        said.append(f"Exam, {name}: {right} of {asked} answers are right ({right / asked:.1%}).")
    attention = record["attention"]
    said += _attention_on_text(attention["text"]) if attention["text"] else []
    said += _attention_in_exam(attention["exam"]) if attention["exam"] else []
    for name, tasks in record["tasks"].items():
        scores = [f"{task} {_first_metric(metrics)}" for task, metrics in tasks.items() if metrics]
        said.append(f"lm-evaluation-harness, {name}: {', '.join(scores)}.")
    return said


def _first_metric(metrics: dict[str, float]) -> str:
    name, value = next(iter(metrics.items()))
    return f"{name} {value:.4g}"


def _execution(record: Record) -> str:
    dense, exact = run_named(record, "dense"), run_named(record, "exact")
    assert exact is not None
    if dense is None:
        value = perplexity(exact["perplexity"])
        return f"Nothing is skipped: {record['model']['activation']} leaves no neuron at zero. " + (
            f"The perplexity is {value}."
        )
    found, count = dense["agreement"], f"{dense['num_tokens']:,}"
    if agrees(record):
        apart = max(abs(found["nats"]), SMALLEST)
        how = "to the last bit" if found["logits"] == 0 else f"within {apart:.2g} nats a token"
        return (
            f"Skipping changes nothing: exact and dense agree {how}, with the same most likely "
            f"token at {percent(found['same_best'])} of {count} places."
        )
    return (
        f"Exact and dense DISAGREE, by {nats(found['nats'])} nats a token over {count} tokens: "
        "skipping neurons changes what this model computes, which is a defect."
    )


def _skipping(record: Record) -> list[str]:
    approximate = run_named(record, "approximate")
    exact = approximate or run_named(record, "exact")
    assert exact is not None
    found = exact["skipping"]
    if found is None:
        return []
    said: list[str] = []
    if record["model"]["predictors"] is None:
        said.append(f"{percent(found['kept'])} of the neurons are active, the others skipped.")
    else:
        whose = "The separate" if approximate else "Its own"
        said.append(
            f"{whose} predictors keep {percent(found['kept'])} of the neurons and among them "
            f"{percent(found['recall'])} of those that are active."
        )
    sizes = [size for size in found["union"] if 1 < int(size) <= 8]
    if sizes:
        union = found["union"][sizes[-1]]
        said.append(f"{sizes[-1]} unrelated tokens together need {percent(union)}.")
    return said


def _other_functions(record: Record) -> list[str]:
    said: list[str] = []
    exact = run_named(record, "exact")
    for name, begins in (
        ("approximate", "With the separate predictors"),
        ("mask off", "With the mask off, which is another function,"),
    ):
        run = run_named(record, name)
        if run is not None and exact is not None:
            said.append(
                f"{begins} the perplexity is {perplexity(run['perplexity'])} instead of "
                f"{perplexity(exact['perplexity'])}, and the next token "
                f"{nats(run['agreement']['nats'])} nats off."
            )
    return said


def choices_on(text: Record) -> dict[str, dict[str, Record]]:
    """What sparse attention cost on the text, by kind of choice and budget."""
    return {kind: text[kind] for kind in ("bound", "gate") if kind in text}


def _attention_on_text(text: Record) -> list[str]:
    said: list[str] = []
    for kind, costs in choices_on(text).items():
        recalled = _ends([percent(cost["recall"]) for cost in costs.values()])
        worse = _ends([change(cost["perplexity_change"]) for cost in costs.values()])
        off = _ends([nats(cost["nats"]) for cost in costs.values()])
        said.append(
            f"Sparse attention by {kind}, which is approximate, reading {_ends(list(costs))} "
            f"tokens in pages of {text['page_size']}: {recalled} of the attention recalled, "
            f"perplexity {worse}, the next token {off} nats off."
        )
    return said


def _attention_in_exam(exam: Record) -> list[str]:
    tasks: dict[str, Record] = exam["tasks"]
    kinds: dict[str, dict[str, dict[str, Record]]] = exam["kinds"]
    asked, exact = (sum(task[key] for task in tasks.values()) for key in ("asked", "right"))
    said: list[str] = []
    for kind, by_budget in kinds.items() if tasks else ():
        right = [str(sum(task["right"] for task in one.values())) for one in by_budget.values()]
        said.append(
            f"Exam ({', '.join(tasks)}), sparse attention by {kind}, reading "
            f"{', '.join(by_budget)} tokens in pages of {exam['page_size']}: "
            f"{', '.join(right)} of {asked} answers are right; {exact} are with all of the context."
        )
    return said


def _ends(values: list[str]) -> str:
    """The first and the last."""
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
