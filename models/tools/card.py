"""The model card of the bundled model: what it was trained on, for how long, and what it scores."""
# pyright: basic

from __future__ import annotations

from textwrap import fill

from .dialogues import UNSEEN

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
    ("models/tools/dialogues.py", "Apache-2.0", "dialogues that this project generates"),
)


def model_card(record: dict, samples: list[tuple[str, str]]) -> str:
    """README.md of the checkpoint, from the numbers of its own training run."""
    sizes, recipe = record["sizes"], record["recipe"]
    done, scores = record["training"], record["scores"]
    sources = "\n".join(f"| {name} | {licence} | {what} |" for name, licence, what in SOURCES)
    accuracy = "\n".join(
        f"| {task.replace('_', ' ')} | {'no' if task in UNSEEN else 'yes'} | {value:.0%} | "
        f"{scores['accuracy_unmasked'][task]:.0%} |"
        for task, value in scores["accuracy"].items()
    )
    layers = "\n".join(
        f"| {i} | {k:.1%} | {a:.1%} | {r:.1%} |"
        for i, (k, a, r) in enumerate(
            zip(scores["kept"], scores["truly_active"], scores["recall"], strict=True)
        )
    )
    union = ", ".join(f"{n}: {share:.1%}" for n, share in scores["union"].items())
    chats = "\n\n".join(f"> {question}\n\n{said}" for question, said in samples)
    shape = (
        f"{record['num_parameters'] / 1e6:.1f} M parameters in bf16; {sizes['layers']} layers, "
        f"hidden {sizes['hidden']}, {sizes['neurons']} neurons a layer, {sizes['heads']} heads on "
        f"{sizes['kv_heads']} K/V heads, predictors of rank {sizes['rank']}, {sizes['vocab']} "
        f"tokens, context {sizes['context']}. Byte-level BPE, ChatML."
    )
    training = (
        f"On {record['hardware']}: {done['steps']} steps, {done['tokens'] / 1e6:.0f} M tokens, "
        f"{done['seconds'] / 60:.1f} minutes. The first {recipe['dense_share']:.0%} of the steps "
        "ran without the mask while the predictors learned to imitate what dReLU leaves; then the "
        "mask stood in the forward pass and was learned through by a straight-through estimator, "
        f"with a pressure against keeping more than {recipe['target']:.0%} of a layer's neurons."
    )
    exam = (
        f"Greedy answers to {recipe['questions_per_task']} questions a task. Where the second "
        "column says no, every question has operands or words that no training dialogue combined."
    )
    command = (
        "turbosparse train --data DIR --out models/tiny "
        f"--minutes {recipe['minutes']:g} --seed {recipe['seed']}"
    )
    return f"""# TurboSparse Tiny

A TurboSparse-Mistral in miniature: `BambooForCausalLM`, dReLU, a predictor inside the forward pass
of every layer. It is here so that the server can be tried without a download; it knows little.

{fill(shape, 100)}

## Training

    {command}

{fill(training, 100)}

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
| dialogues (schema-guided-dialogue dev), loss per assistant token | {scores["dialogue_loss"]:.3f} |
| the same with the mask switched off | {scores["dialogue_loss_unmasked"]:.3f} |
| neurons kept by any of n unrelated tokens | {union} |

{fill(exam, 100)}

| task | questions seen in training | right | with the mask off |
| --- | --- | --- | --- |
{accuracy}

| layer | kept | truly not zero (dReLU) | recall |
| --- | --- | --- | --- |
{layers}

The mask is part of this model: "with the mask off" is another function, shown to compare.

## Samples (greedy)

{chats}

## Limits

It knows what its generated dialogues taught it and little else: it makes mistakes in sums, invents
command options, confuses facts, and writes English only. Do not rely on it.
"""
