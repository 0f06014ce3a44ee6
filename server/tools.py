"""Which tools a chat may call, and the grammar that makes it call one. Knows no template."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .errors import BadRequest
from .lark import json_rule, quoted
from .schemas import ChatRequest, NamedTool, Tool
from .tool_parser import CLOSE, OPEN

MAX_FORCED_CALLS = 8  # of one answer that must call: a weak model would not stop by itself
NOTHING: dict[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """The tools of one request.

    `offered` are shown to the model. Where `must_call`, the answer is a call of one of `callable`
    and nothing else.
    """

    offered: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    must_call: bool
    parallel: bool

    @property
    def has_strict(self) -> bool:
        return any(tool.function.strict for tool in self.callable)


def plan_tools(request: ChatRequest) -> ToolPlan | None:
    """None where nothing may be called; raises BadRequest for a choice that cannot be made."""
    choice = request.tool_choice
    if request.tools is not None and not request.tools:
        raise BadRequest("tools is an empty list: leave it out", "tools")
    if request.tools is None:
        if choice not in (None, "none"):
            raise BadRequest("tool_choice is only allowed with tools", "tool_choice")
        return None
    if choice == "none":
        return None
    offered = tuple(request.tools)
    _check_names(offered)
    parallel = request.parallel_tool_calls is not False
    if isinstance(choice, NamedTool):
        name = choice.function.name
        named = tuple(tool for tool in offered if tool.function.name == name)
        if not named:
            raise BadRequest(f"tool_choice names {name!r}, which is not in tools", "tool_choice")
        return ToolPlan(offered, named, must_call=True, parallel=False)
    return ToolPlan(offered, offered, must_call=choice == "required", parallel=parallel)


def _check_names(tools: tuple[Tool, ...]) -> None:
    names = [tool.function.name for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadRequest(f"tools has {name!r} twice", f"tools[{i}].function.name")


def forced_rules(plan: ToolPlan) -> str:
    """Lark rules whose `calls` is one call or, in parallel, a few."""
    more = f' ("\\n" call){{0,{MAX_FORCED_CALLS - 1}}}' if plan.parallel else ""
    return f"calls: call{more}\ncall: {quoted(OPEN)} body\n{_bodies(plan, relaxed=False)}"


def free_rules(plan: ToolPlan) -> str:
    """Lark rules whose `free` is any text in which a call that is begun is a valid one; arguments
    follow their schema where the tool is strict."""
    text = "/(.|\\n)*/"
    return (
        f"free: (begun body)* TEXT\nTEXT: {text}\nbegun[lazy]: {text} {quoted(OPEN)}\n"
        f"{_bodies(plan, relaxed=True)}"
    )


def _bodies(plan: ToolPlan, *, relaxed: bool) -> str:
    """The rule `body`: what follows the opening marker, one alternative a tool."""
    names = " | ".join(f"call_{i}" for i in range(len(plan.callable)))
    rules = [f'body: "\\n" ({names}) "\\n" {quoted(CLOSE)}']
    for i, tool in enumerate(plan.callable):
        head = quoted(f'{{"name": {json.dumps(tool.function.name)}, "arguments": ')
        is_any = relaxed and not tool.function.strict
        schema = {"type": "object"} if is_any else _schema(tool)
        rules.append(f'call_{i}: {head} arguments_{i} "}}"')
        rules.append(f"arguments_{i}: {json_rule(schema)}")
    return "\n".join(rules) + "\n"


def _schema(tool: Tool) -> dict[str, object]:
    """What the arguments must be. Properties that nobody named are left out: any would do, so a
    model that is forced to go on has no reason to stop."""
    parameters = tool.function.parameters
    if parameters is None:
        return NOTHING
    return (
        {"additionalProperties": False, **parameters} if "properties" in parameters else parameters
    )
