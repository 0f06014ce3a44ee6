"""Whether an answer is right: one grade a kind of question. Knows no model and no tokens."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from .tasks.tool_text import CLOSE, OPEN

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text, and its calls as `{"name": ..., "arguments": {...}}`."""

    text: str
    calls: tuple[object, ...] = ()


def read(text: str) -> Said:
    """What a model wrote, where no server has taken its calls out; one that is no JSON is None."""
    said, *calls = text.split(OPEN)
    return Said(said.strip(), tuple(parsed(call.strip().removesuffix(CLOSE)) for call in calls))


def parsed(text: str) -> object:
    """The JSON value of a text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def is_right(grade: str, expected: str, said: Said) -> bool:
    """By one of `GRADES`. A call where none was expected is wrong, whatever stands beside it."""
    return (grade == "tool_call" or not said.calls) and GRADES[grade](expected, said)


def _contains(expected: str, said: Said) -> bool:
    return expected.lower() in said.text.lower()


def _is_exactly(expected: str, said: Said) -> bool:
    return said.text.strip() == expected.strip()


def _ends_with_number(expected: str, said: Said) -> bool:
    """The last number of the answer: what comes before it may be working."""
    numbers = NUMBER.findall(said.text)
    value, wanted = (float(text.replace(",", "")) for text in ((numbers or ["nan"])[-1], expected))
    return math.isclose(value, wanted)


def _is_json(expected: str, said: Said) -> bool:
    return parsed(said.text) == json.loads(expected)


def _calls(expected: str, said: Said) -> bool:
    """One call, with this name and these arguments."""
    return said.calls == (json.loads(expected),)


GRADES: dict[str, Callable[[str, Said], bool]] = {
    "contains": _contains,
    "exact": _is_exactly,
    "number": _ends_with_number,
    "json": _is_json,
    "tool_call": _calls,
}
