"""Tasks with tools: which function to call with what, when to call none, what a result says."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from . import functions
from .exchange import Case, Exchange, Message, Task, Tool
from .functions import Request

MAX_TOOLS = 4


@dataclass(frozen=True, slots=True)
class ToolChat:
    """A conversation with tools on offer: messages as a client sends them, ours included."""

    tools: list[Tool]
    messages: list[Message]
    held_out: bool


def offer(rng: random.Random, asked: Request | None = None) -> list[Tool]:
    """The tool of the request among others that do something else."""
    offered = [asked] if asked else []
    count = rng.choice((1, 1, 2, 2, 3, MAX_TOOLS))
    while len(offered) < count:
        other = functions.request(rng)
        if all(other.purpose != r.purpose and other.name != r.name for r in offered):
            offered.append(other)
    rng.shuffle(offered)
    return [r.tool for r in offered]


def called(request: Request) -> Message:
    """The assistant's message that makes the call."""
    function = {"name": request.name, "arguments": json.dumps(request.arguments)}
    call = {"id": "call_0", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def returned(request: Request) -> Message:
    return {"role": "tool", "tool_call_id": "call_0", "content": request.result}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def tool_chat(rng: random.Random, others: Task) -> ToolChat:
    """One or two requests of the tools and, among them, questions that need none (`others`)."""
    request = functions.request(rng)
    tools = offer(rng, request)
    messages: list[Message] = []
    held_out = False
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.4:
            exchange = others(rng)
            held_out |= exchange.held_out
            messages += [user(exchange.question), assistant(exchange.answer)]
        else:
            held_out |= request.held_out
            messages += [user(request.question), called(request), returned(request)]
            messages.append(assistant(request.answer))
            request = functions.another(rng, request)
    return ToolChat(tools, messages, held_out)


def exam_cases(rng: random.Random, others: Task) -> list[Case]:
    """A call, a question that needs no call, and an answer from a result; [] if not held out."""
    request, exchange = functions.request(rng), others(rng)
    if not request.held_out or exchange.held_out:
        return []
    tools = offer(rng, request)
    asked = [user(request.question)]
    expected = json.dumps({"name": request.name, "arguments": request.arguments})
    return [
        Case("tool_call", asked, expected, "tool_call", tools),
        Case("tool_answer", [*asked, called(request), returned(request)], request.expected,
             "contains", tools),
        skipped(exchange, offer(rng)),
    ]  # fmt: skip


def skipped(exchange: Exchange, tools: list[Tool]) -> Case:
    """A question that is answered without the tools; no grade forgives a call there."""
    return Case("tool_skip", [user(exchange.question)], exchange.expected, exchange.grade, tools)
