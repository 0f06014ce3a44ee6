"""Tools for a chat template that knows none: told in the system turn, calls and results as text.

The wording is Hermes', which ChatML models with tools were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from .chat_template import Message
from .tool_parser import CLOSE, OPEN

INSTRUCTIONS = """\
# Tools

You may call one or more functions to answer the user. Here are their signatures, as JSON:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and arguments, like this:
{open}
{{"name": <function-name>, "arguments": <args-json-object>}}
{close}"""


def with_tools(turns: Sequence[Message], tools: Sequence[Message]) -> list[Message]:
    """The same conversation in system, user and assistant turns of plain text."""
    told = [_as_text(turn) for turn in turns]
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        told = _instructed(told, INSTRUCTIONS.format(tools=listed, open=OPEN, close=CLOSE))
    return _merged(told)


def _instructed(turns: list[Message], instructions: str) -> list[Message]:
    if turns and turns[0]["role"] == "system":
        said = f"{turns[0]['content']}\n\n{instructions}"
        return [{"role": "system", "content": said}, *turns[1:]]
    return [{"role": "system", "content": instructions}, *turns]


def _as_text(turn: Message) -> Message:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    calls = cast("list[dict[str, object]]", turn.get("tool_calls") or [])
    if not calls:
        return turn
    content = [str(turn["content"])] if turn["content"] else []
    content += [f"{OPEN}\n{json.dumps(c['function'], ensure_ascii=False)}\n{CLOSE}" for c in calls]
    return {"role": "assistant", "content": "\n".join(content)}


def _merged(turns: list[Message]) -> list[Message]:
    """Results that follow one another in one user turn: templates want roles to alternate."""
    merged: list[Message] = []
    for turn in turns:
        follows = merged and merged[-1]["role"] == turn["role"] == "user"
        if follows and str(turn["content"]).startswith("<tool_response>"):
            merged[-1] = {**merged[-1], "content": f"{merged[-1]['content']}\n{turn['content']}"}
        else:
            merged.append(turn)
    return merged
