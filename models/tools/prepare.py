"""From text to rows of tokens to train on, made once and kept for the next run."""
# pyright: basic

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from . import corpus
from .corpus import Encoded, Job
from .fit import Recipe
from .tasks import dialogues
from .tasks.vocabulary import WORDS

NUM_JOBS = 64  # parts of the generated rows: not the number of processes, on which nothing depends
LONG_DIALOGUES = 1 / 40  # of the conversations are made again for long rows
TOKENIZER_DIALOGUES = 20_000
WORD_LISTS = 1000  # so that each word of the lists becomes one token: it has an order to learn
Source = tuple[Encoded, float]  # rows, and their share of a batch


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A tokenizer, and sources in its tokens: ordinary rows and long ones."""

    tokenizer: Tokenizer
    ordinary: list[Source]
    long: list[Source]


def prepare(
    read: Texts, vocab: int, recipe: Recipe, processes: int, cache: Path | None
) -> Prepared:
    """Rows to train on, from `cache` where a run with the same data and recipe has left them."""
    if cache is None:
        tokenizer = tokenizer_of(read, vocab, recipe)
        return _with_shares(tokenizer, rows_of(read, tokenizer, recipe, processes), recipe)
    folder = cache / key_of(read, vocab, recipe)
    if not folder.is_dir():
        tokenizer = tokenizer_of(read, vocab, recipe)
        keep(folder, tokenizer, rows_of(read, tokenizer, recipe, processes))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return _with_shares(tokenizer, kept(folder), recipe)


def tokenizer_of(read: Texts, vocab: int, recipe: Recipe) -> Tokenizer:
    """Trained on some of the generated dialogues and all that is read."""
    count = min(TOKENIZER_DIALOGUES, recipe.conversations)
    own = [corpus.chat(turns) for turns in dialogues.generate(recipe.seed, count)]
    own += [corpus.Document(" ".join(("", *WORDS)))] * WORD_LISTS
    return corpus.train_tokenizer(own + read.texts + read.chats, vocab)


SOURCES = ("chats", "texts", "generated")  # in ordinary rows
LONG_SOURCES = ("long_keys", "long_chats", "long_texts", "long_generated")


def rows_of(
    read: Texts, tokenizer: Tokenizer, recipe: Recipe, processes: int
) -> dict[str, Encoded]:
    """Every source's packed rows, by name."""
    jobs = generated_jobs(read, tokenizer, recipe)
    made = corpus.share_out([job for of_source in jobs.values() for job in of_source], processes)
    rows: dict[str, Encoded] = {}
    for name, of_source in jobs.items():
        rows[name], made = corpus.joined(made[: len(of_source)]), made[len(of_source) :]
    for name, documents in (("chats", read.chats), ("texts", read.texts)):
        encoded = corpus.encode(tokenizer, documents)
        rows[name] = corpus.pack(encoded, recipe.length, recipe.seed)
        rows[f"long_{name}"] = corpus.pack(encoded, recipe.long_length, recipe.seed)
    return rows


def generated_jobs(read: Texts, tokenizer: Tokenizer, recipe: Recipe) -> dict[str, list[Job]]:
    """What is generated for each source, in parts."""
    prose = tuple(line.strip() for d in read.texts for line in d.text.splitlines() if line.strip())
    written = tokenizer.to_str()
    num_jobs = min(NUM_JOBS, recipe.conversations)

    def jobs(kind: int, length: int, dialogues: float, keys: int, longest: int) -> list[Job]:
        return [
            Job(
                seed=(recipe.seed * 10 + kind) * NUM_JOBS + i,
                length=length,
                num_dialogues=round(dialogues / num_jobs),
                num_keys=-(-keys // num_jobs),
                longest_key=longest,
                tokenizer=written,
                prose=prose if keys else (),
            )
            for i in range(num_jobs)
        ]

    length, long = recipe.length, recipe.long_length
    count = recipe.conversations
    return {
        # A row's last document is cut: one half as long as the row is mostly whole.
        "generated": jobs(0, length, count, recipe.short_keys, length // 2),
        "long_generated": jobs(1, long, max(count * LONG_DIALOGUES, num_jobs), 0, 0),
        "long_keys": jobs(2, long, 0, recipe.long_keys, long - 1),
    }


def _with_shares(tokenizer: Tokenizer, rows: dict[str, Encoded], recipe: Recipe) -> Prepared:
    chats, texts, keys = recipe.chat_share, recipe.text_share, recipe.long_key_share
    rest = (1 - keys) / 3
    shares = dict(zip(SOURCES, (chats, texts, 1 - chats - texts), strict=True))
    long_shares = dict(zip(LONG_SOURCES, (keys, rest, rest, rest), strict=True))
    return Prepared(
        tokenizer,
        [(rows[name], share) for name, share in shares.items()],
        [(rows[name], share) for name, share in long_shares.items()],
    )


def key_of(read: Texts, vocab: int, recipe: Recipe) -> str:
    """A hash of all that the rows depend on: the texts, the numbers, our own sources."""
    digest = hashlib.sha256()
    fields = asdict(recipe)
    for name in ("length", "long_length", "conversations", "short_keys", "long_keys", "seed"):
        digest.update(f"{name}={fields[name]};".encode())
    digest.update(f"vocab={vocab};".encode())
    for document in (*read.chats, *read.texts):
        digest.update(repr(document).encode())
    here = Path(__file__).parent
    for source in sorted((*here.glob("tasks/*"), here / "corpus.py", Path(__file__))):
        if source.is_file():
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def keep(folder: Path, tokenizer: Tokenizer, rows: dict[str, Encoded]) -> None:
    """Write everything beside `folder`, then rename: a folder that is there is whole."""
    beside = folder.with_name(f"{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    try:
        tokenizer.save(str(beside / "tokenizer.json"))
        for name, (ids, weights) in rows.items():
            np.save(beside / f"{name}.ids.npy", ids)
            np.save(beside / f"{name}.weights.npy", weights)
        if not folder.exists():
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def kept(folder: Path) -> dict[str, Encoded]:
    """The rows that `keep` has written."""
    return {
        name: (np.load(folder / f"{name}.ids.npy"), np.load(folder / f"{name}.weights.npy"))
        for name in (*SOURCES, *LONG_SOURCES)
    }
