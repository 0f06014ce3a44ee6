"""Pieces of grammars in llguidance's Lark."""

from __future__ import annotations

import json
from typing import cast

# Between two tokens of JSON: nothing, a space, or a line break and an indentation. Without a bound
# a weak model writes white space until it runs out of tokens.
WHITE_SPACE = r" |\n {0,20}"


def json_rule(schema: object) -> str:
    """JSON that a schema describes."""
    if isinstance(schema, dict):
        bounded = {"x-guidance": {"whitespace_pattern": WHITE_SPACE}}
        schema = cast("dict[str, object]", schema) | bounded
    return f"%json {json.dumps(schema)}"


def quoted(text: str) -> str:
    """This text, literally."""
    return json.dumps(text)
