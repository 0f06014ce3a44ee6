"""A file of text as windows of tokens, read piece by piece. Knows no model."""

from __future__ import annotations

import codecs
import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..config import ModelError
from ..fields import is_object, read_object

PIECE = 1 << 20  # bytes that are tokenized at once, up to their last end of a line


def read_tokenizer(directory: Path) -> Tokenizer:
    """A checkpoint's tokenizer.json; raises ModelError."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing: text cannot be read without a tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def bos_ids(directory: Path, tokenizer: Tokenizer) -> list[int]:
    """The id that a text begins with: tokenizer_config.json's bos_token, or none."""
    bos = read_object(directory / "tokenizer_config.json", optional=True).get("bos_token")
    text = bos.get("content") if is_object(bos) else bos
    found = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return [] if found is None else [found]


def read_pieces(path: Path, flag: str) -> Iterator[str]:
    """Whole lines of a UTF-8 file, some `PIECE` bytes together; `.gz` is unpacked.

    Raises ModelError, naming the flag, and the line that is not UTF-8.
    """
    unpack = gzip.open if path.suffix == ".gz" else open
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, num_lines = "", 0
    try:
        with unpack(path, "rb") as file:
            while chunk := file.read(PIECE):
                text = rest + decoder.decode(chunk)
                end = text.rfind("\n") + 1 or len(text)
                yield text[:end]
                rest = text[end:]
                num_lines += chunk.count(b"\n")
        rest += decoder.decode(b"", final=True)
    except FileNotFoundError as error:
        raise ModelError(f"{flag}: there is no file {path}") from error
    except UnicodeDecodeError as error:
        line = num_lines + error.object[: error.start].count(b"\n") + 1
        raise ModelError(f"{flag}: {path}, line {line}, is not UTF-8: {error.reason}") from error
    except (OSError, EOFError) as error:  # a folder, not gzip, cut short, not readable
        raise ModelError(f"{flag}: {path} cannot be read: {error}") from error
    if rest:
        yield rest


def read_windows(
    path: Path,
    flag: str,
    tokenizer: Tokenizer,
    length: int,
    start: list[int],
    num_tokens: int | None = None,
) -> Iterator[Tensor]:
    """The text as windows of `length` token ids, int64, each begun with `start`.

    No more is read than `num_tokens` of the text ask for, rounded up to a window; a last piece
    that does not fill one is left out. Raises ModelError where there is not even one.
    """
    new = length - len(start)
    rest = list[int]()
    num_windows, most = 0, None if num_tokens is None else -(-num_tokens // new)
    for piece in read_pieces(path, flag):
        rest += tokenizer.encode(piece, add_special_tokens=False).ids
        whole = len(rest) // new
        for i in range(whole):
            yield torch.tensor(start + rest[i * new : (i + 1) * new])
            num_windows += 1
            if num_windows == most:
                return
        rest = rest[whole * new :]
    if not num_windows:
        raise ModelError(
            f"{flag}: {path} has {len(rest)} tokens, fewer than one window of {new} needs"
        )


def check_ids(windows: Iterable[Tensor], vocabulary: int) -> None:
    """Raise ModelError where a tokenizer knows more than its model."""
    largest = max(int(ids.max()) for ids in windows)
    if largest >= vocabulary:
        raise ModelError(
            f"tokenizer.json has an id {largest}, the model a vocabulary of {vocabulary}"
        )
