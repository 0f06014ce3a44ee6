"""Trains the bundled model, a TurboSparse-Mistral in miniature: text in, checkpoint out."""
# pyright: basic

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from . import corpus, dialogues
from .assess import Scores, answer, assess
from .card import model_card
from .fit import Data, Recipe, fit
from .output import check_destination, filled
from .trainable import Sizes, TurboSparse

SAMPLES = (
    "Hello!",
    "Who are you?",
    "What is activation sparsity?",
    "How do I start the server?",
    "What is 12 plus 7?",
    "Tom has 23 apples and buys 19 more. How many apples does Tom have?",
    "What is the capital of France?",
    "Tell me about Napoleon.",
    "Write a story about a fox.",
    "Reverse these words: apple, river, cloud",
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
}


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything that is read from the data folder."""

    chats: list[corpus.Document]
    texts: list[corpus.Document]
    held_out_chats: list[corpus.Document]
    held_out_text: corpus.Document

    @classmethod
    def read(cls, data: Path) -> Texts:
        """Raises ModelError with the name of a file that is missing or not what it should be."""
        return cls(
            corpus.read_dialogues(data, "train"),
            corpus.read_texts(data),
            corpus.read_dialogues(data, "dev"),
            corpus.Document(corpus.read_text(data, "wikitext2.test.txt.gz")),
        )


def rows_of(
    read: Texts, tokenizer: Tokenizer, sizes: Sizes, recipe: Recipe, processes: int
) -> list[tuple[corpus.Encoded, float]]:
    """Each source's packed rows with its share of a batch; the generated dialogues come last."""
    generated = corpus.generate_encoded(tokenizer, recipe.conversations, recipe.seed, processes)
    sources = [
        (corpus.encode(tokenizer, read.chats), recipe.chat_share),
        (corpus.encode(tokenizer, read.texts), recipe.text_share),
        (generated, 1 - recipe.chat_share - recipe.text_share),
    ]
    return [(corpus.pack(encoded, sizes.context, 0), share) for encoded, share in sources]


def round_to_published(model: TurboSparse) -> None:
    """What is measured is what is shipped: the weights as bf16 holds them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def train(
    data: Path, out: Path, sizes: Sizes, recipe: Recipe, *, compiled: bool, processes: int
) -> Scores:
    """Everything from text to a checkpoint directory with its model card.

    Raises ModelError, before anything is trained, when the data or `out` cannot be used.
    """
    check_destination(out)
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    read = Texts.read(data)
    own = [corpus.chat(m) for m in dialogues.generate(recipe.seed, 5000)]
    tokenizer = corpus.train_tokenizer(own + read.texts + read.chats, sizes.vocab)
    rows = Data(rows_of(read, tokenizer, sizes, recipe, processes), device)
    taken = time.perf_counter() - started
    print(f"{rows.num_tokens / 1e6:.1f} M tokens in {taken:.0f} s", flush=True)
    model = TurboSparse(sizes).to(device)
    done = fit(model, rows, recipe, compiled=compiled)
    round_to_published(model)
    torch.set_float32_matmul_precision("highest")
    scores = assess(
        model,
        tokenizer,
        corpus.encode(tokenizer, [read.held_out_text]),
        corpus.encode(tokenizer, read.held_out_chats),
        recipe.questions_per_task,
    )
    said = answer(model, tokenizer, list(SAMPLES), max_tokens=96)
    samples: list[tuple[str, str]] = list(zip(SAMPLES, said, strict=True))
    record = {
        "sizes": asdict(sizes) | {"activation": sizes.activation.value},
        "recipe": asdict(recipe),
        "training": done,
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "scores": scores.as_json(),
    }
    files = {
        "config.json": model.config(),
        "generation_config.json": GENERATION_CONFIG,
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "training.json": record,
        "README.md": model_card(record, samples),
    }
    save(out, model, tokenizer, files)
    return scores


def save(out: Path, model: TurboSparse, tokenizer: Tokenizer, files: dict[str, object]) -> None:
    """Write the published layout; after a failure `out` is as it was."""
    with filled(out) as folder:
        save_file(model.published(), folder / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
            (folder / name).write_text(text, encoding="utf-8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse train`."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the training text")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--minutes", type=float, default=Recipe().minutes, help="of optimisation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--conversations", type=int, default=Recipe().conversations, help="generated dialogues"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="to prepare")
    parser.add_argument("--no-compile", action="store_true", help="for GPUs without Triton")


def run(arguments: argparse.Namespace) -> None:
    """Train with the parsed flags and print what came out."""
    recipe = Recipe(
        minutes=arguments.minutes, seed=arguments.seed, conversations=arguments.conversations
    )
    scores = train(
        arguments.data,
        arguments.out,
        Sizes(),
        recipe,
        compiled=not arguments.no_compile and torch.cuda.is_available(),
        processes=arguments.processes,
    )
    print((arguments.out / "README.md").read_text(encoding="utf-8"))
    print(f"wrote {arguments.out}: {scores.mean_kept:.1%} of the neurons kept")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())
