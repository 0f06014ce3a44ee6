"""Trains the bundled model, a TurboSparse-Mistral in miniature: text in, checkpoint out."""
# pyright: basic

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from ..config import Activation, ModelError
from ..fields import read_object
from ..sparsity.gates import OWN
from . import corpus, long_text, own_gates
from .assess import Scores, assess, rows_of_text
from .card import model_card
from .exam import cases, publish
from .fit import Data, Optimizer, Recipe, fit
from .greedy import answers, prompt
from .output import check_destination, filled
from .prepare import Texts, prepare
from .tasks.exchange import Case
from .text import read_tokenizer
from .trainable import Sizes, TurboSparse

SAMPLES = (
    "Hello!",
    "Who are you?",
    "What is activation sparsity?",
    "How do I start the server?",
    "What is 12 plus 7?",
    "What is 348 plus 275?",
    "Tom has 23 apples and buys 19 more. How many apples does Tom have?",
    "What is the capital of France?",
    "Tell me about Napoleon.",
    "Write a story about a fox.",
    "Reverse these words: apple, river, cloud",
    "Sort these words: river, apple, cloud, stone",
    "Convert 3 hours to minutes.",
    "Extract name, age and city as JSON: Anna is 31 years old and lives in Oslo.",
    "I would like to find a restaurant in San Jose.",
)
TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "pad_token": "<unk>",
    "unk_token": "<unk>",
    "chat_template": corpus.CHAT_TEMPLATE,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
GENERATION_CONFIG = {
    "bos_token_id": corpus.BOS,
    "eos_token_id": [corpus.EOS, corpus.IM_END],
    # Greedy where a request does not say otherwise, as the published checkpoints have it.
    "do_sample": True,
    "temperature": 0.0,
}


def exam_of(tokenizer: Tokenizer, recipe: Recipe) -> list[Case]:
    """The questions that are asked of a model trained by this recipe."""
    num_keys = min(recipe.long_questions, recipe.questions_per_task)
    return cases(tokenizer, recipe.questions_per_task, num_keys, recipe.long_length)


def round_to_published(model: TurboSparse) -> None:
    """What is measured is what is shipped: the weights as bf16 holds them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def train(
    data: Path,
    out: Path,
    sizes: Sizes,
    recipe: Recipe,
    *,
    compiled: bool,
    processes: int,
    cache: Path | None = None,
) -> Scores:
    """Everything from text to a checkpoint directory with its model card.

    Raises ModelError, before anything is trained, when the data or `out` cannot be used.
    """
    check_destination(out)
    own_gates.check(recipe)
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    read = Texts.read(data)
    prepared = prepare(read, sizes.vocab, recipe, processes, cache)
    tokenizer = prepared.tokenizer
    rows = Data(prepared.ordinary, device), Data(prepared.long, device)
    taken = time.perf_counter() - started
    print(f"{sum(r.num_tokens for r in rows) / 1e6:.1f} M tokens in {taken:.0f} s", flush=True)
    model = TurboSparse(sizes).to(device)
    gates = own_gates.begin(model, recipe)
    done = fit(model, rows, recipe, compiled=compiled, gates=gates)
    round_to_published(model)
    torch.set_float32_matmul_precision("highest")
    started = time.perf_counter()
    scores = assess(
        model,
        tokenizer,
        corpus.encode(tokenizer, [read.held_out_text]),
        corpus.encode(tokenizer, read.held_out_chats),
        exam_of(tokenizer, recipe),
        recipe.length,
        recipe.answer_tokens,
    )
    asked = [prompt([{"role": "user", "content": question}], []) for question in SAMPLES]
    said = answers(model, tokenizer, asked, max_tokens=recipe.answer_tokens)
    print(f"assessed in {time.perf_counter() - started:.0f} s", flush=True)
    record = {
        "sizes": asdict(sizes) | {"activation": sizes.activation.value},
        "recipe": asdict(recipe),
        "training": done,
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "scores": scores.as_json(),
        "samples": [list(pair) for pair in zip(SAMPLES, said, strict=True)],
    }
    files = {
        "config.json": model.config(),
        "generation_config.json": GENERATION_CONFIG,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "training.json": record,
        "README.md": model_card(record),
    }
    save(out, model, tokenizer, files)
    if gates:
        tokens = corpus.encode(tokenizer, [read.held_out_text])
        own_gates.publish(out, gates, recipe, rows_of_text(tokens, recipe.long_length - 1)[0])
    return scores


def save(out: Path, model: TurboSparse, tokenizer: Tokenizer, files: dict[str, object]) -> None:
    """Write the published layout; after a failure `out` is as it was.

    Gates of the weights that were there before go with them.
    """
    with filled(out) as folder:
        save_file(model.published(), folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
    if (out / OWN).is_dir():
        shutil.rmtree(out / OWN)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse train`."""
    parser.add_argument("--data", type=Path, help="folder with the training text")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--minutes", type=float, default=Recipe().minutes, help="of optimisation")
    parser.add_argument("--max-steps", type=int, default=Recipe().max_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--activation",
        choices=["drelu", "silu", "relu"],
        default="drelu",
        help="silu and relu train a twin without predictors, to compare",
    )
    parser.add_argument(
        "--optimizer", choices=list(Optimizer), type=Optimizer, default=Recipe().optimizer
    )
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument(
        "--conversations", type=int, default=Recipe().conversations, help="generated dialogues"
    )
    parser.add_argument("--questions", type=int, default=Recipe().questions_per_task, help="a task")
    parser.add_argument(
        "--page-budget",
        type=int,
        default=Recipe().page_budget,
        help="tokens of context that long rows learn to get by with, chosen by gates that are "
        "trained along and that the model then carries (default: 0, all)",
    )
    parser.add_argument("--cache", type=Path, help="folder to keep the prepared rows in")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="to prepare")
    parser.add_argument("--no-compile", action="store_true", help="for GPUs without Triton")
    parser.add_argument(
        "--twins", type=Path, nargs="+", default=[], help="trained twins, for the model card"
    )
    parser.add_argument("--card-only", action="store_true", help="write --out's model card anew")
    parser.add_argument("--prepare-only", action="store_true", help="fill --cache, train nothing")
    parser.add_argument(
        "--long-text",
        type=Path,
        help="folder to write text.txt and held-out.txt to, in --out's tokens like its long rows: "
        "for train-gates; trains nothing",
    )
    parser.add_argument("--exam", type=Path, help="folder to write the exam's questions to")


def run(arguments: argparse.Namespace) -> None:
    """Train with the parsed flags, or do the part that they name, and print what came out."""
    recipe = Recipe(
        minutes=arguments.minutes,
        max_steps=arguments.max_steps,
        seed=arguments.seed,
        optimizer=arguments.optimizer,
        learning_rate=arguments.learning_rate,
        conversations=arguments.conversations,
        questions_per_task=arguments.questions,
        page_budget=arguments.page_budget,
    )
    activation = Activation(arguments.activation)
    sizes = Sizes() if activation is Activation.DRELU else Sizes(activation=activation, rank=0)
    if not arguments.card_only:
        if arguments.data is None:
            raise ModelError("--data is needed: the folder with the training text")
        if arguments.long_text is not None:
            texts, tokenizer = Texts.read(arguments.data), read_tokenizer(arguments.out)
            long_text.write(arguments.long_text, texts, tokenizer, recipe.long_length)
            print(f"wrote {arguments.long_text}")
            return
        if arguments.prepare_only:
            fill_cache(arguments, sizes, recipe)
            return
        train_with(arguments, sizes, recipe)
    write_card(arguments.out, arguments.twins)
    if arguments.exam is not None:
        tokenizer = Tokenizer.from_file(str(arguments.out / "tokenizer.json"))
        publish(arguments.exam, exam_of(tokenizer, recipe))
    print((arguments.out / "README.md").read_text(encoding="utf-8"))


def fill_cache(arguments: argparse.Namespace, sizes: Sizes, recipe: Recipe) -> None:
    """Make the rows that several runs are about to share."""
    if arguments.cache is None:
        raise ModelError("--prepare-only needs --cache, the folder to fill")
    read = Texts.read(arguments.data)
    prepare(read, sizes.vocab, recipe, arguments.processes, arguments.cache)
    print(f"prepared {arguments.cache}")


def train_with(arguments: argparse.Namespace, sizes: Sizes, recipe: Recipe) -> None:
    scores = train(
        arguments.data,
        arguments.out,
        sizes,
        recipe,
        compiled=not arguments.no_compile and torch.cuda.is_available(),
        processes=arguments.processes,
        cache=arguments.cache,
    )
    print(f"wrote {arguments.out}: {scores.mean_kept:.1%} of the neurons kept")


def write_card(out: Path, twins: list[Path]) -> None:
    """README.md of a trained checkpoint, from its own record, its gates' and those of its twins."""
    own, *others = [read_record(folder) for folder in (out, *twins)]
    gates = read_object(out / OWN / "config.json", optional=True)
    (out / "README.md").write_text(model_card(own, others, dict(gates)), encoding="utf-8")


def read_record(folder: Path) -> dict:
    """training.json of a checkpoint; raises ModelError where there is none."""
    path = folder / "training.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())
