"""Text like the bundled model's long rows, for tools that take a file: `train-gates` is one.

Chats over texts with pass keys, generated dialogues, those that are read, and prose. Knows no
model, but for the tokenizer that documents are measured with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from tokenizers import Tokenizer

from ..config import ModelError
from . import corpus
from .corpus import Document, Job
from .prepare import Texts
from .tasks import dialogues

ROWS, HELD_OUT_ROWS = 40, 6  # as many tokens as so many rows have
KEYS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Kinds:
    """What a file is mixed of, and the seed of what is generated."""

    chats: Sequence[Document]
    texts: Sequence[Document]
    seed: int


def write(folder: Path, read: Texts, tokenizer: Tokenizer, length: int) -> None:
    """`text.txt`, of what is trained on, and `held-out.txt`, of what is not; rows of `length`
    tokens. Raises ModelError."""
    prose = [document for document in read.texts if document.text]
    lines = read.held_out_text.text.splitlines(keepends=True)
    unseen = [Document("".join(lines[i : i + 20])) for i in range(0, len(lines), 20)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, num_rows, kinds in (
            ("text.txt", ROWS, Kinds(read.chats, prose, 0)),
            ("held-out.txt", HELD_OUT_ROWS, Kinds(read.held_out_chats, unseen, 1)),
        ):
            text = "\n".join(mixed(kinds, tokenizer, length, num_rows))
            (folder / name).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ModelError(f"--long-text: {folder} cannot be written: {error}") from error


def mixed(kinds: Kinds, tokenizer: Tokenizer, length: int, num_rows: int) -> Iterator[str]:
    """Documents, a row of pass keys and a row of something else in turn."""
    rng = random.Random(f"long text {kinds.seed}")
    prose = tuple(line.strip() for d in kinds.texts for line in d.text.splitlines() if line.strip())
    keys = _keys(kinds.seed, tokenizer, length, prose)
    others = cycle((_generated(kinds.seed), _drawn(rng, kinds.texts), _drawn(rng, kinds.chats)))
    for row in range(num_rows):
        source, size = (next(others) if row % 2 else keys), 0
        while size < length:
            text = written(next(source))
            size += len(tokenizer.encode(text, add_special_tokens=False).ids)
            yield text


def written(document: Document) -> str:
    """As `corpus.encode` reads it."""
    if document.text:
        return f"<s>{document.text}</s>"
    turns = (f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in document.chat)
    return "".join(turns) + "</s>"


def _keys(
    seed: int, tokenizer: Tokenizer, length: int, prose: tuple[str, ...]
) -> Iterator[Document]:
    """Most of them nearly as long as a row."""
    for part in range(1 << 30):
        own = seed * (1 << 30) + part + (1 << 40)  # none of training's
        job = Job(own, length, 0, KEYS_AT_ONCE, length - 1, tokenizer.to_str(), prose)
        yield from corpus.hidden_keys(tokenizer, job)


def _generated(seed: int) -> Iterator[Document]:
    for turns in dialogues.generate(seed + (1 << 40), 1 << 30):
        yield corpus.chat(turns)


def _drawn(rng: random.Random, documents: Sequence[Document]) -> Iterator[Document]:
    """In a random order, each once before any comes again."""
    while True:
        yield from rng.sample(documents, len(documents))
