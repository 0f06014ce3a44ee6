"""Text to train on: read, tokenized, packed into rows that start where a document starts."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ..config import ModelError
from ..fields import Json, as_list, as_object
from .tasks import dialogues, passkey
from .tasks.tool_text import Turn

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
UNK, BOS, EOS, IM_START, IM_END = range(5)
PROMPT_WEIGHT = 0.1  # of the loss on what others say in a chat; the assistant's words count 1
FILLING_WEIGHT = 0.02  # the same around pass keys, where a thousand words ask for five digits
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A plain text, or a chat; what others than the assistant say there counts less."""

    text: str = ""
    chat: tuple[Turn, ...] = ()
    prompt_weight: float = PROMPT_WEIGHT


def chat(turns: list[Turn], prompt_weight: float = PROMPT_WEIGHT) -> Document:
    return Document(chat=tuple(turns), prompt_weight=prompt_weight)


def read_text(data: Path, name: str) -> str:
    """A gzipped UTF-8 file of the folder; raises ModelError with its path."""
    path = data / name
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ModelError(
            f"{path} is missing: --data must name the folder with the training text"
        ) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not UTF-8: {error}") from error
    except (OSError, EOFError) as error:  # not gzip, cut short, not readable
        raise ModelError(f"{path} cannot be read: {error}") from error


def read_rows(data: Path, name: str, *fields: str) -> Iterator[tuple[str, ...]]:
    """The named string fields of each JSON line."""
    for where, row in _objects(data, name):
        yield tuple(_text(row, field, where) for field in fields)


def read_dialogues(data: Path, split: str) -> list[Document]:
    """The task dialogues of schema-guided-dialogue as chats."""
    documents: list[Document] = []
    for where, row in _objects(data, f"sgd_dialogues.{split}.jsonl.gz"):
        turns = [as_object(turn, where) for turn in as_list(row.get("messages"), where)]
        chat = tuple((_text(t, "role", where), _text(t, "content", where)) for t in turns)
        documents.append(Document(chat=chat))
    return documents


def _objects(data: Path, name: str) -> Iterator[tuple[str, Json]]:
    """Each JSON line's object, with its place for messages."""
    for number, line in enumerate(read_text(data, name).split("\n"), 1):
        where = f"{data / name}, line {number}"
        if not line:
            continue
        try:
            row: object = json.loads(line)
        except ValueError as error:
            raise ModelError(f"{where}: not JSON: {error}") from error
        yield where, as_object(row, where)


def _text(row: Json, field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise ModelError(f"{where}: {field} must be a string, got {value!r}")
    return value


def read_texts(data: Path) -> list[Document]:
    """Word problems and commands as questions, prose as it is."""
    documents: list[Document] = []
    for question, answer in read_rows(data, "gsm8k.train.jsonl.gz", "question", "answer"):
        documents.append(_asked(question, answer.split("\n####")[0]))
    for page, text in read_rows(data, "tldr_pages.jsonl.gz", "page", "text"):
        command = page.rpartition("/")[2]
        documents.append(_asked(f"How do I use the command {command}?", text.strip()))
    for (text,) in read_rows(data, "rust_book.jsonl.gz", "text"):
        documents += _pieces(text)
    for name in ("wikitext2.valid.txt.gz", "shakespeare.txt.gz"):
        documents += _pieces(read_text(data, name))
    return documents


def _asked(question: str, answer: str) -> Document:
    return Document(chat=(("user", question), ("assistant", answer)))


def _pieces(text: str, size: int = 3000) -> list[Document]:
    """A long text in documents of about `size` characters, cut at line ends."""
    pieces: list[Document] = []
    current: list[str] = []
    length = 0
    for line in text.splitlines(keepends=True):
        current.append(line)
        length += len(line)
        if length >= size:
            pieces.append(Document("".join(current)))
            current, length = [], 0
    return [*pieces, Document("".join(current))] if current else pieces


def train_tokenizer(documents: list[Document], vocab_size: int) -> Tokenizer:
    """Byte-level BPE, every digit a token of its own: sums are done digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (d.text or "\n".join(content for _, content in d.chat) for d in documents)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


Encoded = tuple[NDArray[np.int16], NDArray[np.float16]]  # token ids, weight of each in the loss


def encode(tokenizer: Tokenizer, documents: list[Document]) -> list[Encoded]:
    """Token ids with loss weights; a chat as the template writes it, `</s>` after each document."""
    parts: list[tuple[int, str, float]] = []
    for i, document in enumerate(documents):
        if document.text:
            parts.append((i, f"<s>{document.text}</s>", 1.0))
        for role, content in document.chat:
            little = document.prompt_weight
            parts.append((i, f"<|im_start|>{role}\n", little))
            parts.append((i, f"{content}<|im_end|>", 1.0 if role == "assistant" else little))
            parts.append((i, "\n", little))
        if document.chat:
            parts.append((i, "</s>", document.prompt_weight))
    encodings = tokenizer.encode_batch_fast([text for _, text, _ in parts])
    ids: list[list[int]] = [[] for _ in documents]
    weights: list[list[float]] = [[] for _ in documents]
    for (i, _, weight), encoding in zip(parts, encodings, strict=True):
        ids[i] += encoding.ids
        weights[i] += [weight] * len(encoding.ids)
    return [
        (np.array(i, np.int16), np.array(w, np.float16)) for i, w in zip(ids, weights, strict=True)
    ]


def pack(documents: list[Encoded], length: int, seed: int) -> Encoded:
    """Shuffled rows of `length + 1` tokens, each beginning with a document: [rows, length + 1].

    A document that does not fit is cut at the row's end; a row is never begun in its middle, so
    that the model learns how a conversation opens.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    size = length + 1
    num_rows = sum(len(tokens) for tokens, _ in documents) // size + 1  # what is cut leaves fewer
    ids = np.full((num_rows, size), EOS, np.int16)
    weights = np.zeros((num_rows, size), np.float16)
    row, column = 0, 0
    for i in order:
        tokens, weight = documents[i]
        taken = min(len(tokens), size - column)
        ids[row, column : column + taken] = tokens[:taken]
        weights[row, column : column + taken] = weight[:taken]
        column += taken
        if column == size:
            row, column = row + 1, 0
    used = row + (column > 0)
    return ids[:used], weights[:used]


@dataclass(frozen=True, slots=True)
class Job:
    """A part of the generated rows, for a process of its own."""

    seed: int
    length: int  # of a row
    num_dialogues: int
    num_keys: int  # documents with pass keys, of up to `longest_key` tokens
    longest_key: int
    tokenizer: str
    prose: tuple[str, ...] = ()  # lines to hide keys in


def generate_rows(job: Job) -> Encoded:
    """The project's own dialogues, made, encoded and packed."""
    tokenizer = Tokenizer.from_str(job.tokenizer)
    documents = [chat(turns) for turns in dialogues.generate(job.seed, job.num_dialogues)]
    documents += hidden_keys(tokenizer, job)
    return pack(encode(tokenizer, documents), job.length, job.seed)


def token_counter(tokenizer: Tokenizer) -> passkey.Count:
    """The number of tokens of texts that stand within another."""
    return lambda texts: [
        len(encoding.ids) for encoding in tokenizer.encode_batch_fast([f" {t}" for t in texts])
    ]


def hidden_keys(tokenizer: Tokenizer, job: Job) -> list[Document]:
    """Chats over texts with pass keys in them, most of them nearly as long as they may be."""
    count = token_counter(tokenizer)
    rng = random.Random(f"keys {job.seed}")
    documents: list[Document] = []
    while len(documents) < job.num_keys:
        length = int(job.longest_key * (1 - 0.9 * rng.random() ** 3))
        turns, held_out = passkey.document(rng, count, length, job.prose)
        if not held_out:
            documents.append(chat(turns, FILLING_WEIGHT))
    return documents


def share_out(jobs: list[Job], processes: int) -> list[Encoded]:
    """Each job's rows, made in several processes; the same whatever their number."""
    if processes == 1:
        return [generate_rows(job) for job in jobs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(generate_rows, jobs))


def joined(parts: list[Encoded]) -> Encoded:
    """Rows of equal length as one array."""
    ids, weights = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(weights)
