"""Whether an answer is right: one grade a kind of question. Knows no model and no tokens."""

from __future__ import annotations

import json
import re

from .tasks.tool_text import CLOSE, OPEN

NUMBER = re.compile(r"-?\d+")


def is_right(grade: str, expected: str, got: str) -> bool:
    """Whether the text `got` is what was expected, by one of `exchange.GRADES`.

    contains: it occurs, whatever the case. number: the last number of the answer is it. exact: the
    answer is it. json: an object that equals it. tool_call: one call of the same function with the
    same arguments. A call where none was expected is wrong.
    """
    if grade == "tool_call":
        return _call(got) == json.loads(expected)
    if OPEN in got:
        return False
    match grade:
        case "contains":
            return expected.lower() in got.lower()
        case "number":
            return NUMBER.findall(got)[-1:] == [expected]
        case "exact":
            return got.strip() == expected
        case "json":
            return _json(got) == json.loads(expected)
        case _:
            raise ValueError(
                f"grade must be one of contains, number, exact, json, tool_call: {grade!r}"
            )


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _call(text: str) -> object:
    """The call that the answer consists of, or None."""
    body = text.strip()
    if not (body.startswith(OPEN) and body.endswith(CLOSE)):
        return None
    return _json(body[len(OPEN) : -len(CLOSE)])
