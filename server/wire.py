"""OpenAI's JSON for chat and text completions, whole and in server-sent events.

Two dialects of one shape; a chunk's constant part is written once per request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from ..engine.messages import TokenLogprobs
from .errors import ApiError
from .generation import Answer, Generation, Logprobs, Piece, Usage
from .tokenizer import Tokenizer
from .tool_parser import CallDelta

DONE = b"data: [DONE]\n\n"
LOWEST = -9999.0  # JSON has no minus infinity; vLLM's value


def compact(value: object) -> str:
    """JSON without white space."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(value: object, name: str = "") -> bytes:
    """One server-sent event, named where its API names them."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {compact(value)}\n\n".encode()


def usage_json(usage: Usage) -> dict[str, object]:
    said: dict[str, object] = {
        "prompt_tokens": usage.num_prompt,
        "completion_tokens": usage.num_completion,
        "total_tokens": usage.num_prompt + usage.num_completion,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached},
    }
    if usage.active_fraction is not None:
        said["active_fraction"] = usage.active_fraction
    return said


class Completions:
    """What chat and text completions share. A subclass says `object`, `chunk_object`, and what a
    choice's members are."""

    object: str
    chunk_object: str

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        *,
        include_usage: bool,
        continuous_usage: bool,
        logprobs: bool,
    ) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._wants_logprobs = logprobs
        self._waiting: list[Logprobs] = [[] for _ in generation.choices]  # of text held back
        head = compact(self._head(self.chunk_object))[:-1]
        self._before = f'data: {head},"choices":[{{"index":'

    def _head(self, kind: str) -> dict[str, object]:
        generation = self._generation
        return {
            "id": generation.id,
            "object": kind,
            "created": generation.created,
            "model": generation.model,
        }

    def opening(self) -> Iterable[bytes]:
        return ()

    def piece(self, piece: Piece) -> bytes:
        self._waiting[piece.index] += piece.logprobs
        if not (piece.text or piece.calls or piece.finish):
            return b""
        logprobs, self._waiting[piece.index] = self._waiting[piece.index], []
        return self._chunks(piece, logprobs)

    def _chunks(self, piece: Piece, logprobs: Logprobs) -> bytes:
        raise NotImplementedError

    def closing(self) -> bytes:
        if not self._include_usage:
            return DONE
        usage = usage_json(self._generation.usage())
        return event({**self._head(self.chunk_object), "choices": [], "usage": usage}) + DONE

    def failure(self, error: ApiError) -> bytes:
        return event(error.body()) + DONE

    def whole(self, answers: list[Answer]) -> dict[str, object]:
        choices = [
            {"index": i, **self._members(i, answer), "finish_reason": answer.finish}
            for i, answer in enumerate(answers)
        ]
        return {
            **self._head(self.object),
            "choices": choices,
            "usage": usage_json(self._generation.usage()),
        }

    def _members(self, index: int, answer: Answer) -> dict[str, object]:
        raise NotImplementedError

    def _chunk(self, index: int, members: str, logprobs: object, finish: str | None) -> bytes:
        reason = f'"{finish}"' if finish else "null"
        found = "null" if logprobs is None else compact(logprobs)
        return (
            f'{self._before}{index},{members},"logprobs":{found},"finish_reason":{reason}'
            f"}}]{self._usage_so_far()}}}\n\n"
        ).encode()

    def _usage_so_far(self) -> str:
        if self._continuous_usage:
            return f',"usage":{compact(usage_json(self._generation.usage()))}'
        return ',"usage":null' if self._include_usage else ""


class ChatDialect(Completions):
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self) -> Iterable[bytes]:
        """Each choice begins: who speaks."""
        members = '"delta":{"role":"assistant","content":""}'
        for choice in self._generation.choices:
            yield self._chunk(choice.index, members, None, None)

    def _chunks(self, piece: Piece, logprobs: Logprobs) -> bytes:
        deltas = [f'{{"content":{compact(piece.text)}}}'] if piece.text else []
        deltas += [_call_delta(said) for delta in piece.calls for said in _in_two(delta)]
        deltas = deltas or ["{}"]
        last = len(deltas) - 1
        found = self._logprobs(logprobs)
        return b"".join(
            self._chunk(
                piece.index,
                f'"delta":{delta}',
                found if i == last else None,
                piece.finish if i == last else None,
            )
            for i, delta in enumerate(deltas)
        )

    def _members(self, index: int, answer: Answer) -> dict[str, object]:
        message: dict[str, object] = {
            "role": "assistant",
            "content": answer.text or (None if answer.calls else ""),
            "refusal": None,
        }
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for id, call in zip(answer.call_ids, answer.calls, strict=True)
            ]
        return {"message": message, "logprobs": self._logprobs(answer.logprobs)}

    def _logprobs(self, logprobs: Logprobs) -> object:
        if not self._wants_logprobs:
            return None
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


def _in_two(delta: CallDelta) -> Iterable[CallDelta]:
    """A call's name first, as OpenAI sends it, then what it has of arguments."""
    if delta.id is not None:
        yield CallDelta(delta.index, "", delta.id, delta.name)
    if delta.arguments:
        yield CallDelta(delta.index, delta.arguments)


def _call_delta(delta: CallDelta) -> str:
    call: dict[str, object] = {"index": delta.index}
    function: dict[str, object] = {"arguments": delta.arguments}
    if delta.id is not None:
        call |= {"id": delta.id, "type": "function"}
        function = {"name": delta.name, **function}
    return compact({"tool_calls": [{**call, "function": function}]})


class TextDialect(Completions):
    """`echoed` are the prompts that are to stand before their answers, one a choice; empty for
    none."""

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        *,
        include_usage: bool,
        continuous_usage: bool,
        logprobs: bool,
        echoed: Sequence[str] = (),
    ) -> None:
        super().__init__(
            generation,
            tokenizer,
            include_usage=include_usage,
            continuous_usage=continuous_usage,
            logprobs=logprobs,
        )
        self._echoed = echoed
        self._begun = [False] * len(generation.choices)
        self._offsets = [0] * len(generation.choices)
        self._prompt_logprobs: list[list[TokenLogprobs]] = [[] for _ in generation.choices]

    def piece(self, piece: Piece) -> bytes:
        self._prompt_logprobs[piece.index] += piece.prompt_logprobs
        return super().piece(piece)

    def _chunks(self, piece: Piece, logprobs: Logprobs) -> bytes:
        index, text, found = piece.index, piece.text, [*logprobs]
        if self._echoed and not self._begun[index]:
            text = self._echoed[index] + text
            found = [*self._scored(index, self._prompt_logprobs[index]), *found]
        self._begun[index] = True
        said = self._logprobs(found, index)
        return self._chunk(index, f'"text":{compact(text)}', said, piece.finish)

    def _members(self, index: int, answer: Answer) -> dict[str, object]:
        text, found = answer.text, [*answer.logprobs]
        if self._echoed:
            text = self._echoed[index] + text
            found = [*self._scored(index, answer.prompt_logprobs), *found]
        return {"text": text, "logprobs": self._logprobs(found, index)}

    def _scored(
        self, index: int, scores: list[TokenLogprobs]
    ) -> list[tuple[int, TokenLogprobs | None]]:
        """The prompt's tokens; nothing came before the first, so it has no log-probability."""
        return list(zip(self._generation.choices[index].prompt, [None, *scores], strict=False))

    def _logprobs(self, logprobs: Sequence[tuple[int, TokenLogprobs | None]], index: int) -> object:
        if not self._wants_logprobs:
            return None
        offsets: list[int] = []
        for token_id, _ in logprobs:
            offsets.append(self._offsets[index])
            if token_id not in self._tokenizer.special_ids:  # those are not in the text
                self._offsets[index] += len(self._text(token_id))
        return {
            "tokens": [self._text(token_id) for token_id, _ in logprobs],
            "token_logprobs": [found and max(found.sampled, LOWEST) for _, found in logprobs],
            "top_logprobs": [found and self._top(token_id, found) for token_id, found in logprobs],
            "text_offset": offsets,
        }

    def _top(self, token_id: int, found: TokenLogprobs) -> dict[str, float]:
        """The most likely ones, and the token itself if it is not among them."""
        top = {self._text(i): max(logprob, LOWEST) for i, logprob in reversed(found.top)}
        own = self._text(token_id)
        return top if own in top else {own: max(found.sampled, LOWEST), **top}

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")
