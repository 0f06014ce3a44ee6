"""Anthropic's JSON, whole and in server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from .errors import ApiError
from .generation import Answer, Generation, Piece, Usage
from .tool_parser import CallDelta
from .wire import event

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
Members = dict[str, object]


class MessagesDialect:
    """One answer: blocks of text and of calls, one after the other."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._block = -1  # the last one that was opened
        self._open: str | None = None  # its type, while it is open
        self._finish: str | None = None

    def opening(self) -> Iterable[bytes]:
        message = self._message([], None) | {"usage": self._usage()}
        yield self._event("message_start", message=message)

    def piece(self, piece: Piece) -> bytes:
        self._finish = piece.finish
        events: list[bytes] = []
        if piece.text:
            events += self._begin("text", {"type": "text", "text": ""})
            events.append(self._delta({"type": "text_delta", "text": piece.text}))
        for delta in piece.calls:
            events += self._call(delta)
        return b"".join(events)

    def _call(self, delta: CallDelta) -> Iterable[bytes]:
        if delta.id is not None:
            yield from self._end()
            block: Members = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
            yield from self._begin("tool_use", block)
        if delta.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": delta.arguments})

    def _begin(self, kind: str, block: Members) -> Iterable[bytes]:
        if self._open == kind:
            return
        yield from self._end()
        self._open = kind
        self._block += 1
        yield self._event("content_block_start", index=self._block, content_block=block)

    def _end(self) -> Iterable[bytes]:
        if self._open is not None:
            self._open = None
            yield self._event("content_block_stop", index=self._block)

    def _delta(self, delta: Members) -> bytes:
        return self._event("content_block_delta", index=self._block, delta=delta)

    def closing(self) -> bytes:
        delta = self._ending(self._finish)
        ending = self._event("message_delta", delta=delta, usage=self._usage())
        return b"".join([*self._end(), ending, self._event("message_stop")])

    def failure(self, error: ApiError) -> bytes:
        return event({"type": "error", **error.body()}, "error")

    def whole(self, answers: list[Answer]) -> dict[str, object]:
        [answer] = answers
        content: list[Members] = [{"type": "text", "text": answer.text}] if answer.text else []
        for id, call in zip(answer.call_ids, answer.calls, strict=True):
            given = _input(call.arguments)
            content.append({"type": "tool_use", "id": id, "name": call.name, "input": given})
        return self._message(content, answer.finish) | {"usage": self._usage()}

    def _message(self, content: list[Members], finish: str | None) -> Members:
        return {
            "id": self._generation.id,
            "type": "message",
            "role": "assistant",
            "model": self._generation.model,
            "content": content,
            **self._ending(finish),
        }

    def _ending(self, finish: str | None) -> Members:
        stop = self._generation.choices[0].stop_string
        reason = None if finish is None else STOP_REASONS.get(finish, finish)
        if finish == "stop" and stop is not None:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop}

    def _usage(self) -> Members:
        return usage_json(self._generation.usage())

    def _event(self, name: str, /, **members: object) -> bytes:
        return event({"type": name, **members}, name)


def usage_json(usage: Usage) -> dict[str, object]:
    """Anthropic counts what was read from the cache apart from the other input."""
    said: dict[str, object] = {
        "input_tokens": usage.num_prompt - usage.num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.num_cached,
        "output_tokens": usage.num_completion,
    }
    if usage.active_fraction is not None:
        said["active_fraction"] = usage.active_fraction
    return said


def _input(arguments: str) -> Mapping[str, object]:
    """A call's arguments as an object; of one that was cut short, nothing."""
    try:
        value: object = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]
