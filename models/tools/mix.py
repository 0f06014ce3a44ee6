"""Rows of tokens from a weighted mix of text files: streamed, packed, the same for every reader.

A row is tokens of one source, documents end with EOS, and no place is filled up. Where the stream
stands is a few numbers, from which it goes on. Knows no model.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from ..config import ModelError
from ..fields import Fields, Json, as_list, as_object
from .text import read_tokenizer

PIECE = 8192  # characters of a plain text that make a document
BLOCK = 1024  # documents that are shuffled among each other
SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True, slots=True)
class Source:
    """A file of text, and its share of the rows in proportion to the others' weights."""

    name: str
    path: Path
    weight: float = 1.0

    def as_json(self) -> Json:
        return asdict(self) | {"path": str(self.path)}


def read_mix(path: Path) -> tuple[Source, ...]:
    """The sources that a YAML file lists, or a text file alone; raises ModelError.

    Paths in the list are relative to the list's folder.
    """
    if path.suffix not in (".yaml", ".yml"):
        sources = (_source({"path": str(path.absolute())}, path.parent, "--data"),)
    else:
        entries = as_list(_read_yaml(path), str(path))
        sources = tuple(
            _source(as_object(entry, f"{path}: entry {i}"), path.parent, f"{path}: entry {i}")
            for i, entry in enumerate(entries, 1)
        )
    if not sources:
        raise ModelError(f"{path} lists no source")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ModelError(f"{path}: name {name!r} is given to {names.count(name)} sources")
    return sources


def _read_yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"--data: {path} is missing") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f"--data: {path} cannot be read as YAML: {error}") from error


def _source(entry: Json, folder: Path, where: str) -> Source:
    fields = Fields(entry, where)
    unknown = sorted(entry.keys() - {"path", "weight", "name"})
    if unknown:
        raise ModelError(f"{where}: {unknown[0]!r} is none of path, weight, name")
    path = folder / fields.text("path", "")
    weight = fields.number("weight", 1.0)
    if path == folder:
        raise ModelError(f"{where}: path is missing")
    if not (0 < weight < math.inf):
        raise ModelError(f"{where}: weight={weight:g} is not positive")
    if _kind(path) not in SUFFIXES:
        raise ModelError(f"{where}: {path.name} is none of .txt, .jsonl, .txt.gz, .jsonl.gz")
    if not path.is_file():
        raise ModelError(f"{where}: {path} is missing")
    return Source(fields.text("name", path.name.split(".")[0]), path, weight)


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def read_documents(path: Path) -> Iterator[str]:
    """The `text` of each line of a .jsonl; of a .txt, pieces cut at line ends.

    Raises ModelError with the file and the line.
    """
    if _kind(path) == ".jsonl":
        for where, line in _lines(path):
            if line.strip():
                yield _text_of(line, where)
        return
    piece: list[str] = []
    length = 0
    for _, line in _lines(path):
        piece.append(line)
        length += len(line)
        if length >= PIECE:
            yield "".join(piece)
            piece, length = [], 0
    if piece:
        yield "".join(piece)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line with its place for messages."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                where = f"{path}, line {number}"
                try:
                    yield where, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise ModelError(f"{where}: not UTF-8: {error}") from error
    except (OSError, EOFError) as error:  # not gzip, cut short, not readable
        raise ModelError(f"{path} cannot be read: {error}") from error


def _text_of(line: str, where: str) -> str:
    try:
        row: object = json.loads(line)
    except ValueError as error:
        raise ModelError(f"{where}: not JSON: {error}") from error
    text = as_object(row, where).get("text")
    if not isinstance(text, str):
        raise ModelError(f"{where}: text must be a string, got {text!r}")
    return text


class Encoder:
    """Text to the ids of one document: BOS where the tokenizer writes one, EOS always."""

    def __init__(self, directory: Path, eos: int, vocab_size: int) -> None:
        """Raises ModelError where the directory's tokenizer.json cannot be read."""
        self._tokenizer = read_tokenizer(directory)
        self.eos, self.vocab_size = eos, vocab_size

    def encode(self, text: str) -> list[int]:
        """Raises ModelError at an id that the model has no embedding for."""
        ids = self._tokenizer.encode(text).ids
        if max(ids, default=0) >= self.vocab_size:
            raise ModelError(
                f"tokenizer.json writes id {max(ids)}, but vocab_size is {self.vocab_size}"
            )
        return ids if ids[-1:] == [self.eos] else [*ids, self.eos]


@dataclass(frozen=True, slots=True)
class Place:
    """What comes next of a source: in which pass, which document, which of its tokens."""

    epoch: int = 0
    document: int = 0
    token: int = 0


class TokenStream:
    """The tokens of one source without end; each pass reads it in another order."""

    def __init__(self, source: Source, encoder: Encoder, seed: int, place: Place) -> None:
        self._source, self._encoder, self._seed = source, encoder, seed
        self.place = place
        self._following = self._encoded()
        self._ids: Sequence[int] = ()

    def take(self, count: int) -> list[int]:
        """The next `count` tokens; raises ModelError."""
        taken: list[int] = []
        while len(taken) < count:
            if self.place.token >= len(self._ids):
                self.place, self._ids = next(self._following)
            place = self.place
            piece = self._ids[place.token : place.token + count - len(taken)]
            taken += piece
            self.place = Place(place.epoch, place.document, place.token + len(piece))
        return taken

    def _encoded(self) -> Iterator[tuple[Place, list[int]]]:
        start = self.place
        for epoch in itertools.count(start.epoch):
            first = start.document if epoch == start.epoch else 0
            numbered = enumerate(self._shuffled(epoch))
            for number, text in itertools.islice(numbered, first, None):
                if text.strip():
                    # A document begun before goes on in its middle.
                    token = start.token if (epoch, number) == (start.epoch, first) else 0
                    yield Place(epoch, number, token), self._encoder.encode(text)

    def _shuffled(self, epoch: int) -> Iterator[str]:
        """One pass: the documents in blocks, each block in an order of its own."""
        documents = read_documents(self._source.path)
        num_texts = 0
        for block in itertools.count():
            texts = list(itertools.islice(documents, BLOCK))
            if not texts:
                break
            random.Random(f"{self._seed} {epoch} {block}").shuffle(texts)
            num_texts += sum(1 for text in texts if text.strip())
            yield from texts
        if not num_texts:
            raise ModelError(f"{self._source.path} holds no text")


class Rows:
    """Endless rows of `length` tokens; `position` is all that going on from here takes."""

    def __init__(
        self,
        sources: Sequence[Source],
        encoder: Encoder,
        length: int,
        seed: int,
        position: Mapping[str, object] | None = None,
    ) -> None:
        """`position` is one that another stream of the same sources and seed had."""
        state = Fields(position or {}, "position")
        places = as_object(state.json.get("places") or {}, "places")
        self._length, self._seed = length, seed
        self._row = int(state.number("row", 0))
        self._weights = [source.weight for source in sources]
        self._streams = {
            source.name: TokenStream(source, encoder, seed, _place(places.get(source.name)))
            for source in sources
        }

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        drawn = random.Random(f"{self._seed} row {self._row}")
        (stream,) = drawn.choices(list(self._streams.values()), self._weights)
        self._row += 1
        return stream.take(self._length)

    @property
    def epoch(self) -> int:
        """Passes over the source that has been read the most often."""
        return max(stream.place.epoch for stream in self._streams.values())

    @property
    def position(self) -> dict[str, object]:
        places = {name: asdict(stream.place) for name, stream in self._streams.items()}
        return {"row": self._row, "places": places}


def _place(value: object) -> Place:
    fields = Fields(as_object(value or {}, "place"), "place")
    return Place(*(int(fields.number(name, 0)) for name in ("epoch", "document", "token")))
