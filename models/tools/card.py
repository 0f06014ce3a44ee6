"""The model card of the bundled model: what it was trained on, for how long, and what it scores."""
# pyright: basic

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from .fit import Recipe
from .tasks.dialogues import UNSEEN

SOURCES = (
    (
        "google-research-datasets/dstc8-schema-guided-dialogue, train",
        "CC BY-SA 4.0",
        "task dialogues",
    ),
    ("openai/grade-school-math, train", "MIT", "word problems"),
    ("tldr-pages/tldr, English", "CC BY 4.0", "how to use commands"),
    ("rust-lang/book", "MIT or Apache-2.0", "prose with code"),
    ("WikiText-2 (pytorch/examples), valid", "CC BY-SA", "prose"),
    ("Shakespeare (pytorch/examples)", "public domain", "plays"),
    (
        "models/tools/tasks",
        "Apache-2.0",
        "dialogues that this project generates, its documents among them",
    ),
)


GOALS = {
    "arithmetic": 0.95,
    "reverse": 0.95,
    "sort": 0.95,
    "passkey": 0.95,
    "handbook": 0.80,
}
TWIN_NAMES = {"silu": "SwiGLU", "relu": "ReLU on the gate", "drelu": "dReLU, predictors"}


def model_card(record: dict, twins: Sequence[dict] = (), gates: dict | None = None) -> str:
    """README.md of the checkpoint, from the numbers of its own training run and its twins', and
    what the gates that it carries say of themselves."""
    scores = record["scores"]
    sources = "\n".join(f"| {name} | {licence} | {what} |" for name, licence, what in SOURCES)
    chats = "\n\n".join(f"> {question}\n\n{said}" for question, said in record["samples"])
    union = ", ".join(f"{n}: {share:.1%}" for n, share in scores["union"].items())
    return f"""# TurboSparse Tiny

A TurboSparse-Mistral in miniature: `BambooForCausalLM`, dReLU, a predictor inside the forward pass
of every layer. It is here so that the server can be tried without a download; it knows little.

{fill(_shape(record), 100)}

## Training

    {_command(record)}

{fill(_training(record), 100)}

| data | licence | what |
| --- | --- | --- |
{sources}

The weights are released under Apache-2.0.

## Scores

Measured on the published (bf16) weights. The losses and the neurons kept are of text that was not
trained on.

| | |
| --- | --- |
| neurons kept by the predictors, mean | {scores["mean_kept"]:.1%} |
| WikiText-2 test, loss per token (nats; this model's own tokens) | {scores["text_loss"]:.3f} |
| the same with the mask switched off | {scores["text_loss_unmasked"]:.3f} |
| dialogues (schema-guided-dialogue dev), loss per assistant token | {scores["dialogue_loss"]:.3f} |
| the same with the mask switched off | {scores["dialogue_loss_unmasked"]:.3f} |
| neurons kept by any of n unrelated tokens | {union} |

{fill(_exam(record), 100)}

| task | seen in training | right | with the mask off | goal |
| --- | --- | --- | --- | --- |
{_accuracy(scores)}

| layer | kept | truly not zero (dReLU) | recall | share of the activations dropped |
| --- | --- | --- | --- | --- |
{_layers(scores)}

The mask is part of this model: "with the mask off" is another function, shown to compare.
{_attention(gates["quality"]) if gates else ""}{_side_by_side(record, twins) if twins else ""}
## Samples (greedy)

{chats}

## Limits

It knows what its generated dialogues taught it and little else: it makes mistakes in sums, invents
command options, confuses facts, and writes English only. Do not rely on it.
"""


def _shape(record: dict) -> str:
    sizes = record["sizes"]
    return (
        f"{record['num_parameters'] / 1e6:.1f} M parameters in bf16; {sizes['layers']} layers, "
        f"hidden {sizes['hidden']}, {sizes['neurons']} neurons a layer, {sizes['heads']} heads on "
        f"{sizes['kv_heads']} K/V heads, predictors of rank {sizes['rank']}, {sizes['vocab']} "
        f"tokens, {sizes['context']} positions, of which it was trained on "
        f"{record['recipe']['long_length']}. Byte-level BPE, ChatML."
    )


def _command(record: dict) -> str:
    recipe, limit = record["recipe"], Recipe().max_steps
    steps = "" if recipe["max_steps"] == limit else f" --max-steps {recipe['max_steps']}"
    return (
        "turbosparse train --data DIR --out models/tiny "
        f"--minutes {recipe['minutes']:g} --seed {recipe['seed']}{steps}"
    )


def _training(record: dict) -> str:
    recipe, done = record["recipe"], record["training"]
    return (
        f"On {record['hardware']}: {done['steps']} steps, {done['tokens'] / 1e6:.0f} M tokens, "
        f"{done['seconds'] / 60:.1f} minutes; one step in {recipe['long_every']} of rows of "
        f"{recipe['long_length']} tokens, the others of {recipe['length']}. The first "
        f"{recipe['dense_share']:.0%} of the steps ran without the mask while the predictors "
        "learned to imitate what dReLU leaves; then the mask stood in the forward pass, in the end "
        f"in {recipe['masked_share']:.0%} of the rows, and was learned through by a "
        "straight-through estimator, with a pressure against keeping more than "
        f"{recipe['target']:.0%} of a layer's neurons or {recipe['mean_target']:.1%} of all, and "
        f"one against dropping activations.{_paged(recipe)}"
    )


def _paged(recipe: dict) -> str:
    budget = recipe.get("page_budget", 0)  # models from before it could be given have none
    if not budget:
        return ""
    return (
        f" After {recipe['paged_from']:.0%} of the steps {recipe['paged_share']:.0%} of the long "
        f"rows read only {budget} tokens of their context, in pages of {recipe['page_size']} that "
        "gates chose, which were trained along to expect the attention that each page gets."
    )


def _attention(quality: dict) -> str:
    """What the gates in `attention_gates` do, beside the bound, which needs none."""
    budgets = quality["gate"].keys()
    rows = [
        f"| {budget} | {by} | {cost['recall']:.1%} | "
        f"{' '.join(format(100 * share, '.0f') for share in cost['recall_by_layer'])} | "
        f"{cost['perplexity'] / quality['perplexity'] - 1:+.1%} | {cost['nats']:.3f} |"
        for budget in budgets
        for by, cost in (("bound", quality["bound"][budget]), ("gate", quality["gate"][budget]))
    ]
    told = (
        "This model carries gates for `--attention gate` in `attention_gates`. Measured on "
        f"{quality['num_tokens']:,} tokens of {quality['text']}, {quality['window']} at a time, "
        "every one of which reads only as many tokens of its context as the budget says."
    )
    return f"""
## Sparse attention

{fill(told, 100)}

| budget | by | attention recalled | by layer, % | perplexity | nats a token off |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def _exam(record: dict) -> str:
    return (
        f"Greedy answers to {record['recipe']['questions_per_task']} questions a task. Where the "
        "second column says no, every question has operands, words or a wording that no training "
        "dialogue has. Pass keys stand anywhere in a prompt of about "
        f"{record['recipe']['long_length']} tokens."
    )


def _accuracy(scores: dict) -> str:
    return "\n".join(
        f"| {_title(task)} | {'no' if task in UNSEEN else 'yes'} | {value:.1%} | "
        f"{scores['accuracy_unmasked'][task]:.1%} | "
        f"{_goal(task, value)} |"
        for task, value in scores["accuracy"].items()
    )


def _goal(task: str, value: float) -> str:
    if task not in GOALS:
        return ""
    return f"{GOALS[task]:.0%}{'' if value >= GOALS[task] else ', not met'}"


def _layers(scores: dict) -> str:
    columns = (scores[name] for name in ("kept", "truly_active", "recall", "lost"))
    return "\n".join(
        f"| {i} | {kept:.1%} | {active:.1%} | {recall:.1%} | {lost:.1%} |"
        for i, (kept, active, recall, lost) in enumerate(zip(*columns, strict=True))
    )


def _side_by_side(record: dict, twins: Sequence[dict]) -> str:
    """The paper's ablation in small: losses, density and tasks of models with one recipe."""
    models = (record, *twins)
    names = [TWIN_NAMES[m["sizes"]["activation"]] for m in models]

    def row(title: str, *path: str, form: str = ".3f") -> str:
        values = []
        for model in models:
            value = model
            for key in path:
                value = value[key]
            values.append(format(value, form))
        return f"| {title} | {' | '.join(values)} |"

    rows = [
        row("steps", "training", "steps", form="d"),
        row("parameters", "num_parameters", form=",d"),
        row("training loss", "training", "final_loss"),
        row("WikiText-2 test, loss", "scores", "text_loss"),
        row("dialogues, loss", "scores", "dialogue_loss"),
        row("neurons computed", "scores", "mean_kept", form=".1%"),
        *(
            row(_title(task), "scores", "accuracy", task, form=".1%")
            for task in record["scores"]["accuracy"]
        ),
    ]
    return f"""
## Twins

The same data, seed and number of steps with other activations; the dReLU model's mask is on.

| | {" | ".join(names)} |
| --- |{" --- |" * len(names)}
{chr(10).join(rows)}
"""


def _title(task: str) -> str:
    return task.replace("_", " ")
