"""Text to token ids and back, one token at a time. Knows no model.

The `tokenizers` library alone: importing transformers would cost this process seconds and memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol, cast

from tokenizers import Tokenizer as Backend
from tokenizers.decoders import DecodeStream

from .checkpoint import CheckpointError


class TokenStream(Protocol):
    """The library's DecodeStream: a token's text, or None while a character is not whole."""

    def step(self, tokenizer: Backend, id: int) -> str | None: ...


class Tokenizer:
    """A checkpoint's tokenizer. The model's vocabulary may be larger: such ids have no text."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.no_truncation()
        backend.no_padding()
        decoder = json.loads(backend.to_str())["decoder"]
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._is_byte_level = '"ByteLevel"' in json.dumps(decoder)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """A chat template writes its own special tokens; a plain prompt gets the tokenizer's."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of all tokens at once; bytes that are no character become U+FFFD."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool) -> TokenStream:
        return DecodeStream(skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, as it is: it may be a part of a character."""
        piece = self.backend.id_to_token(token_id)
        if piece is None:
            return b""
        if self._is_byte_level:
            known = [BYTE_OF.get(character) for character in piece]
            if None not in known:  # else a special token: its own text
                return bytes(cast("list[int]", known))
            return piece.encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        return piece.replace("\u2581", " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_level_alphabet()


def read_tokenizer(directory: Path) -> Tokenizer:
    """From tokenizer.json; raises CheckpointError."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing. Where there is another tokenizer file, transformers writes it: "
            f"AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
        )
    try:
        return Tokenizer(Backend.from_file(str(path)))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path} cannot be read: {error}") from error
