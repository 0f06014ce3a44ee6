"""Conversations with tools as plain turns, worded as the server words them for ChatML models.

The server's own words are in server/tool_prompt.py, which this floor cannot import; a test holds
the two together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

from .exchange import Message, Tool

Turn = tuple[str, str]  # role, content
OPEN, CLOSE = "<tool_call>", "</tool_call>"
INSTRUCTIONS = """\
# Tools

You may call one or more functions to answer the user. Here are their signatures, as JSON:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and arguments, like this:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def call_text(name: str, arguments: dict[str, object]) -> str:
    """What the assistant writes to call a function."""
    return f"{OPEN}\n{json.dumps({'name': name, 'arguments': arguments})}\n{CLOSE}"


def plain_turns(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Turn]:
    """System, user and assistant turns; the tools stand at the end of the system turn."""
    turns = [_turn(message) for message in messages]
    if not tools:
        return turns
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    told = INSTRUCTIONS.format(tools=listed)
    if turns[0][0] == "system":
        return [("system", f"{turns[0][1]}\n\n{told}"), *turns[1:]]
    return [("system", told), *turns]


def _turn(message: Message) -> Turn:
    role, content = str(message["role"]), message.get("content")
    if role == "tool":
        return "user", f"<tool_response>\n{content}\n</tool_response>"
    calls = cast("list[dict[str, dict[str, str]]]", message.get("tool_calls", []))
    if not calls:
        return role, str(content)
    return role, "\n".join(_written(call["function"]) for call in calls)


def _written(function: dict[str, str]) -> str:
    return call_text(function["name"], json.loads(function["arguments"]))
