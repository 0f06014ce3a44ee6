"""Requests of invented functions: listed ones, and ones that are put together."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

from .exchange import Tool, is_held_out
from .filling import among, name, number, word
from .function_list import FUNCTIONS, Function, Parameter

ATTRIBUTES = (
    "price", "weight", "height", "length", "age", "owner", "status", "size", "rating", "value",
    "temperature", "speed", "stock", "address", "population", "distance", "score", "balance",
    "version", "capacity", "volume", "depth", "width", "phone number", "birthday", "colour",
)  # fmt: skip
ENTITIES = ("item", "product", "object", "name", "thing", "entity", "key", "query", "subject")
VERBS = ("get", "find", "fetch", "look_up", "check", "read", "query", "show", "lookup")
ACTIONS = (
    "open", "close", "start", "stop", "delete", "create", "send", "print", "copy", "move", "lock",
    "unlock", "book", "cancel", "order", "buy", "sell", "paint", "clean", "repair", "share",
    "save", "upload", "download", "archive", "rename",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks of one function: the call, its result, and the answer from the result."""

    function: Function
    tool: Tool
    name: str
    keys: list[str]  # the arguments' names, in the function's order
    arguments: dict[str, object]
    question: str
    result: str
    answer: str
    expected: str  # a part of the answer
    held_out: bool

    @property
    def purpose(self) -> str:
        """Two tools of one purpose would be a choice that nobody can make."""
        return self.function.names[0]


def _attribute(rng: random.Random) -> Function:
    """A function that looks one attribute of something up."""
    attribute = rng.choice(ATTRIBUTES)
    key = attribute.replace(" ", "_")
    entity = Parameter((rng.choice(ENTITIES),), word if rng.random() < 0.5 else name)
    return Function(
        (f"{rng.choice(VERBS)}_{key}", f"{key}_of", f"{rng.choice(VERBS)}_{key}"),
        (
            f"Get the {attribute} of something",
            f"Look up the {attribute}",
            f"Returns the {attribute}",
        ),
        (entity,),
        (
            f"What is the {attribute} of {{0}}?",
            f"Tell me the {attribute} of {{0}}.",
            f"Look up the {attribute} of {{0}}.",
            f"I need the {attribute} of {{0}}.",
        ),
        f"The {attribute} of {{0}} is {{r[{key}]}}.",
        f"{{r[{key}]}}",
        {key: rng.choice((number(1, 1000), word, name))},
    )


def _action(rng: random.Random) -> Function:
    """A function that does something to a thing with a name."""
    action, thing = rng.choice(ACTIONS), word(rng)
    return Function(
        (f"{action}_{thing}", f"{thing}_{action}"),
        (f"{action.capitalize()} a {thing}", f"{action.capitalize()} the {thing} with this name"),
        (Parameter((rng.choice(("name", "id", "title", "label", thing)),), _label),),
        (
            f"Please {action} the {thing} {{0}}.",
            f"{action.capitalize()} the {thing} {{0}}.",
            f"Can you {action} the {thing} {{0}}?",
            f"I want you to {action} the {thing} {{0}}.",
        ),
        f"Done: {action} {thing} {{0}}.",
        "{0}",
        {"status": among("ok", "done", "success")},
    )


def _label(rng: random.Random) -> object:
    return rng.choice((name(rng), str(rng.randrange(100, 10000))))


def request(rng: random.Random) -> Request:
    """A request of a listed function or, as often, of one that is put together."""
    kind = rng.random()
    if kind < 0.5:
        return _filled(rng, rng.choice(FUNCTIONS))
    return _filled(rng, _attribute(rng) if kind < 0.8 else _action(rng))


def another(rng: random.Random, before: Request) -> Request:
    """The same function asked again for something else."""
    return _asked(rng, before.function, before.tool, before.name, before.keys)


def _filled(rng: random.Random, function: Function) -> Request:
    called = rng.choice(function.names)
    names = [rng.choice(parameter.names) for parameter in function.parameters]
    schema = _schema(rng, function, names)
    described: Tool = {"name": called}
    if rng.random() < 0.9:
        described["description"] = rng.choice(function.descriptions)
    described["parameters"] = schema
    tool: Tool = {"type": "function", "function": described}
    return _asked(rng, function, tool, called, names)


def _schema(rng: random.Random, function: Function, names: list[str]) -> dict[str, object]:
    properties: dict[str, object] = {}
    describes = rng.random() < 0.4
    for key, parameter in zip(names, function.parameters, strict=True):
        said: dict[str, object] = {"type": parameter.type}
        if parameter.choices:
            said["enum"] = list(parameter.choices)
        if describes and parameter.description:
            said["description"] = parameter.description
        properties[key] = said
    schema: dict[str, object] = {"type": "object", "properties": properties}
    return schema | ({"required": names} if rng.random() < 0.7 else {})


def _asked(
    rng: random.Random, function: Function, tool: Tool, called: str, keys: list[str]
) -> Request:
    values = [parameter.value(rng) for parameter in function.parameters]
    arguments: dict[str, object] = dict(zip(keys, values, strict=True))
    result = {key: make(rng) for key, make in function.result.items()}
    if function.computed:
        result = function.computed(*values)
    question = rng.choice(function.questions).format(*values)
    style = rng.random()
    if style < 0.1:
        question = question.rstrip("?.!")
    elif style < 0.2:
        question = f"Please tell me: {question}"
    return Request(
        function,
        tool,
        called,
        keys,
        arguments,
        question,
        json.dumps(result),
        function.answer.format(*values, r=result),
        function.expected.format(*values, r=result),
        # Whatever the function is called: the same words from a user are the same request.
        is_held_out(function.answer, *map(str, values)),
    )
