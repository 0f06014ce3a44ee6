"""Tool calls in a model's text: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`.

`parse` is a pure function of the whole text so far. What it reports only ever grows as the text
does, so a stream is the difference between two of its answers, and cutting a text anywhere cannot
change what is found in it. Text that only looks like a call is text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# A call whose name is known, so that its arguments can be shown as they come.
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Call:
    """A call as far as it is known; `arguments` is JSON text, or its beginning."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """Text and calls; `num_complete` of the calls will not change any more."""

    content: str
    calls: tuple[Call, ...]
    num_complete: int


def parse(text: str, *, is_whole: bool, max_calls: int | None = None) -> Parsed:
    """What `text` says; of a text that goes on, only what no continuation can take back.

    What follows the last call that is allowed is not read.
    """
    content = Content()
    calls: list[Call] = []
    at = 0
    while (start := text.find(OPEN, at)) >= 0:
        body = start + len(OPEN)
        found = _read_call(text, body, is_whole)
        if found is None:  # no call: the marker is text
            content.add(text[at:body])
            at = body
            continue
        content.add(text[at:start].rstrip())
        content.interrupt()
        call, end = found
        if call is not None:
            calls.append(call)
        if end is None:  # it goes on
            return Parsed(content.text, tuple(calls), len(calls) - (call is not None))
        if len(calls) == max_calls:
            return Parsed(content.text, tuple(calls), len(calls))
        at = end + len(text[end:]) - len(text[end:].lstrip())
    rest = text[at:]
    if not is_whole:
        rest = rest[: len(rest) - _num_held(rest)]
    elif calls:
        rest = rest.rstrip()
    content.add(rest)
    return Parsed(content.text, tuple(calls), len(calls))


class Content:
    """The text around calls; what stands on two sides of one stays on two lines."""

    def __init__(self) -> None:
        self.text = ""
        self._interrupted = False

    def add(self, text: str) -> None:
        if text and self.text and self._interrupted:
            self.text += "\n"
        if text:
            self.text += text
            self._interrupted = False

    def interrupt(self) -> None:
        self._interrupted = True


def _read_call(text: str, start: int, is_whole: bool) -> tuple[Call | None, int | None] | None:
    """The call in text[start:] and where it ends. The call is None while nothing is sure, the end
    while it goes on; None alone: this is no call."""
    begins = text[start:].lstrip()
    if begins and not begins.startswith("{"):
        return None
    head = HEAD.match(text, start)
    if head is not None:
        name = _name(head[1])
        if name is None:
            return None
        end = _object_end(text, head.end())
        arguments = text[head.end() : end]
        if end is None:
            return Call(name, arguments), len(text) if is_whole else None
        return Call(name, arguments), _after(text, end, is_whole)
    offset = len(text) - len(begins)
    try:
        value, end = DECODER.raw_decode(text, offset)
    except (ValueError, RecursionError):  # not whole yet, or never
        return None if is_whole or CLOSE in begins else (None, None)
    call = _call_of(value)
    return None if call is None else (call, _after(text, end, is_whole))


def _name(quoted: str) -> str | None:
    """What a JSON string says; None for one with an escape that does not exist."""
    try:
        return cast("str", json.loads(quoted, strict=False))
    except ValueError:
        return None


def _call_of(value: object) -> Call | None:
    """A call that was written in another order, or with its arguments as text."""
    if not isinstance(value, dict):
        return None
    said = cast("dict[str, object]", value)
    name, arguments = said.get("name"), said.get("arguments", said.get("parameters", {}))
    if not isinstance(name, str) or not isinstance(arguments, dict | str):
        return None
    is_text = isinstance(arguments, str)
    return Call(name, arguments if is_text else json.dumps(arguments, ensure_ascii=False))


def _after(text: str, end: int, is_whole: bool) -> int | None:
    """Where the text goes on after a call's JSON; None while the closing marker is not there."""
    close = text.find(CLOSE, end)
    if close >= 0:
        return close + len(CLOSE)
    return len(text) if is_whole else None


def _object_end(text: str, start: int) -> int | None:
    """Where the JSON object that begins at `start` ends; None while it does not."""
    depth, at = 0, start
    while at < len(text):
        character = text[at]
        if character == '"':
            string = STRING.match(text, at)
            if string is None:
                return None
            at = string.end()
            continue
        depth += (character in "{[") - (character in "}]")
        at += 1
        if depth == 0:
            return at
    return None


def _num_held(rest: str) -> int:
    """Characters at the end that may turn out to belong to a call: white space, a marker begun."""
    cut = len(rest)
    for length in range(min(len(OPEN) - 1, len(rest)), 0, -1):
        if rest.endswith(OPEN[:length]):
            cut = len(rest) - length
            break
    return len(rest) - len(rest[:cut].rstrip())


@dataclass(frozen=True, slots=True)
class CallDelta:
    """News of one call: `id` and `name` once, in its first delta, then pieces of its arguments."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class ToolStream:
    """One answer's text as it grows, divided into content and calls.

    Where nothing but calls can come (`calls_only`), what is no call is one that was cut short
    before its name was known: it is not shown.
    """

    def __init__(
        self, *, parallel: bool, new_id: Callable[[], str], calls_only: bool = False
    ) -> None:
        self._calls_only = calls_only
        self._max_calls = None if parallel else 1
        self._new_id = new_id
        self._text = ""
        self._shown = Parsed("", (), 0)

    @property
    def num_calls(self) -> int:
        return len(self._shown.calls)

    @property
    def is_done(self) -> bool:
        """The one call that was allowed is complete: what would follow is not wanted."""
        return self._shown.num_complete == self._max_calls

    def add(self, text: str, *, is_whole: bool) -> tuple[str, list[CallDelta]]:
        """The content and the news of calls that this text sets free."""
        if self.is_done:
            return "", []
        self._text += text
        before = self._shown
        now = self._shown = parse(self._text, is_whole=is_whole, max_calls=self._max_calls)
        deltas: list[CallDelta] = []
        for i, call in enumerate(now.calls):
            if i >= len(before.calls):
                deltas.append(CallDelta(i, call.arguments, self._new_id(), call.name))
            elif len(call.arguments) > len(before.calls[i].arguments):
                deltas.append(CallDelta(i, call.arguments[len(before.calls[i].arguments) :]))
        content = "" if self._calls_only else now.content[len(before.content) :]
        return content, deltas


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"
