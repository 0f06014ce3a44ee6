"""OpenAI's JSON, whole and in server-sent events, for chat and for text completions.

Two dialects of one shape; a chunk's constant part is written once per request.
"""

from __future__ import annotations

import json
from typing import Protocol

from ..engine.messages import TokenLogprobs
from .errors import ApiError
from .generation import Generation, Piece, Usage
from .tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
LOWEST = -9999.0  # JSON has no minus infinity; vLLM's value
Logprobs = list[tuple[int, TokenLogprobs]]


def event(value: object) -> bytes:
    """One server-sent event."""
    return f"data: {_json(value)}\n\n".encode()


def error_event(error: ApiError) -> bytes:
    return event(error.body())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def usage_json(usage: Usage) -> dict[str, object]:
    return {
        "prompt_tokens": usage.num_prompt,
        "completion_tokens": usage.num_completion,
        "total_tokens": usage.num_prompt + usage.num_completion,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached},
    }


class Dialect(Protocol):
    """What differs between chat and text completions."""

    object: str  # of a whole answer
    chunk_object: str
    opening: str  # the members of a choice's first chunk; empty: there is none

    def delta(self, text: str) -> str:
        """The JSON members of a chunk's choice that carry text."""
        ...

    def whole(self, text: str) -> dict[str, object]:
        """The members of a whole choice that carry text."""
        ...

    def logprobs(self, logprobs: Logprobs, offset: int) -> dict[str, object]:
        """Log-probabilities; `offset` is where in the answer the first token's text begins."""
        ...


class ChatDialect:
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    opening = '"delta":{"role":"assistant","content":""}'

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def delta(self, text: str) -> str:
        return f'"delta":{{"content":{_json(text)}}}' if text else '"delta":{}'

    def whole(self, text: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, logprobs: Logprobs, offset: int) -> dict[str, object]:
        content = [
            {
                **self._token(token_id, found.sampled),
                "top_logprobs": [self._token(i, logprob) for i, logprob in found.top],
            }
            for token_id, found in logprobs
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, object]:
        raw = self._tokenizer.token_bytes(token_id)
        return {
            "token": raw.decode(errors="replace"),
            "logprob": max(logprob, LOWEST),
            "bytes": list(raw),
        }


class TextDialect:
    object = "text_completion"
    chunk_object = "text_completion"
    opening = ""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def delta(self, text: str) -> str:
        return f'"text":{_json(text)}'

    def whole(self, text: str) -> dict[str, object]:
        return {"text": text}

    def logprobs(self, logprobs: Logprobs, offset: int) -> dict[str, object]:
        tokens = [self._text(token_id) for token_id, _ in logprobs]
        offsets: list[int] = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [max(found.sampled, LOWEST) for _, found in logprobs],
            "top_logprobs": [
                {self._text(i): max(logprob, LOWEST) for i, logprob in found.top}
                for _, found in logprobs
            ],
            "text_offset": offsets,
        }

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")


class Chunks:
    """The events of one streamed answer."""

    def __init__(self, generation: Generation, dialect: Dialect, include_usage: bool) -> None:
        self.dialect = dialect
        self._head = {
            "id": generation.id,
            "object": dialect.chunk_object,
            "created": generation.created,
            "model": generation.model,
        }
        prefix = _json(self._head)[:-1]
        usage = ',"usage":null' if include_usage else ""
        self._before = f'data: {prefix},"choices":[{{"index":'
        self._after = f"}}]{usage}}}\n\n"
        self._offsets = [0] * len(generation.choices)

    def opening(self, index: int) -> bytes:
        """A choice begins: who speaks."""
        return self._chunk(index, self.dialect.opening, "null", None)

    def piece(self, piece: Piece, logprobs: Logprobs | None) -> bytes:
        """New text of a choice, its end, or both."""
        found = "null"
        if logprobs is not None:
            found = _json(self.dialect.logprobs(logprobs, self._offsets[piece.index]))
        self._offsets[piece.index] += len(piece.text)
        return self._chunk(piece.index, self.dialect.delta(piece.text), found, piece.finish)

    def _chunk(self, index: int, members: str, logprobs: str, finish: str | None) -> bytes:
        reason = f'"{finish}"' if finish else "null"
        return (
            f'{self._before}{index},{members},"logprobs":{logprobs},"finish_reason":{reason}'
            f"{self._after}"
        ).encode()

    def usage(self, usage: Usage) -> bytes:
        """The last chunk before [DONE], for who asked."""
        return event({**self._head, "choices": [], "usage": usage_json(usage)})


def whole_answer(
    generation: Generation, dialect: Dialect, texts: list[str], logprobs: list[Logprobs] | None
) -> dict[str, object]:
    """The answer to a request that does not stream."""
    choices: list[dict[str, object]] = []
    for choice, text in zip(generation.choices, texts, strict=True):
        found = None if logprobs is None else dialect.logprobs(logprobs[choice.index], 0)
        choices.append(
            {
                "index": choice.index,
                **dialect.whole(text),
                "logprobs": found,
                "finish_reason": choice.finish,
            }
        )
    return {
        "id": generation.id,
        "object": dialect.object,
        "created": generation.created,
        "model": generation.model,
        "choices": choices,
        "usage": usage_json(generation.usage()),
    }
