"""What `/v1/messages` takes, Anthropic's way, and the chat that it means."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from .errors import BadRequest
from .refusals import Harmless, refuse
from .schemas import (
    MAX_STOP,
    MAX_TOOLS,
    Body,
    ChatMessage,
    ChatRequest,
    Count,
    Function,
    FunctionCall,
    FunctionName,
    NamedTool,
    Sparsity,
    StopString,
    TextPart,
    Tool,
    ToolCall,
)

# Where the client said what the chat's fields were made of.
FIELDS = {
    "tool_choice": "tool_choice",
    "tools": "tools",
    "max_tokens": "max_tokens",
    "stop": "stop_sequences",
}
UNSUPPORTED: dict[str, Harmless] = {
    "mcp_servers": ([],),
    "container": (),
    "output_format": (),
}


class ToolUse(Body):
    """A call in an earlier turn of the assistant."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, object]


class ToolResult(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextPart] | None = None
    is_error: bool | None = None


class Thinking(Body):
    """Thoughts of another model in an earlier turn: not shown to this one."""

    type: Literal["thinking", "redacted_thinking"]


class Unknown(Body):
    """Whatever else a block may be: refused by its type."""

    type: Literal["text", "tool_use", "tool_result", "thinking"]


def _kind(block: object) -> str:
    kind: object = block.get("type") if isinstance(block, dict) else getattr(block, "type", None)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    known = {
        "text": "Text",
        "tool_use": "ToolUse",
        "tool_result": "ToolResult",
        "thinking": "Thinking",
        "redacted_thinking": "Thinking",
    }
    return known.get(kind, "Unknown") if isinstance(kind, str) else "Unknown"


Block = Annotated[
    Annotated[TextPart, Tag("Text")]
    | Annotated[ToolUse, Tag("ToolUse")]
    | Annotated[ToolResult, Tag("ToolResult")]
    | Annotated[Thinking, Tag("Thinking")]
    | Annotated[Unknown, Tag("Unknown")],
    Discriminator(_kind),
]


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Field(min_length=1)]


class AnthropicTool(Body):
    """A client's own tool; Anthropic's server tools have another `type`."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, object]


class AnthropicChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Body):
    """`POST /v1/messages/count_tokens`."""

    model: str | None = None
    messages: Annotated[list[Turn], Field(min_length=1)]
    system: str | list[TextPart] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicChoice | None = None


class MessagesRequest(CountRequest):
    """`POST /v1/messages`. `thinking` and `output_config.effort` are leave to think, which models
    without reasoning do not take: accepted, and nothing changes."""

    max_tokens: Count
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP)] | None = None
    sparsity: Sparsity | None = None


def to_chat(request: CountRequest) -> ChatRequest:
    """The chat that a request means; raises BadRequest."""
    refuse(request.model_extra, UNSUPPORTED, "")
    chat = ChatRequest.model_construct(
        model=request.model,
        messages=_messages(request),
        tools=[_tool(tool) for tool in request.tools] if request.tools else None,
        add_generation_prompt=None,
        continue_final_message=_continues(request),
    )
    _choose(chat, request.tool_choice)
    if isinstance(request, MessagesRequest):
        chat.max_tokens = request.max_tokens
        chat.stream = request.stream
        chat.temperature = request.temperature
        chat.top_p = request.top_p
        chat.top_k = request.top_k
        chat.stop = request.stop_sequences
        chat.sparsity = request.sparsity
    return chat


def _continues(request: CountRequest) -> bool:
    """The last words are the assistant's: it goes on from there."""
    return request.messages[-1].role == "assistant"


def _choose(chat: ChatRequest, choice: AnthropicChoice | None) -> None:
    if choice is None:
        return
    if choice.disable_parallel_tool_use:
        chat.parallel_tool_calls = False
    match choice.type:
        case "auto" | "none":
            chat.tool_choice = choice.type
        case "any":
            chat.tool_choice = "required"
        case "tool":
            if choice.name is None:
                raise BadRequest("tool_choice.name is missing", "tool_choice.name")
            named = FunctionName(name=choice.name)
            chat.tool_choice = NamedTool(type="function", function=named)


def _tool(tool: AnthropicTool) -> Tool:
    function = Function.model_construct(
        _fields_set={"name", "description", "parameters"},
        name=tool.name,
        description=tool.description,
        parameters=tool.input_schema,
    )
    return Tool(type="function", function=function)


def _messages(request: CountRequest) -> list[ChatMessage]:
    system = request.system
    messages: list[ChatMessage] = []
    if system:
        text = system if isinstance(system, str) else "\n".join(part.text for part in system)
        messages.append(ChatMessage(role="system", content=text))
    for i, turn in enumerate(request.messages):
        messages += _turn(turn, f"messages[{i}]")
    return messages


def _turn(turn: Turn, where: str) -> list[ChatMessage]:
    """One turn as chat messages: a user's results of tools stand before what else it says."""
    if isinstance(turn.content, str):
        return [ChatMessage(role=turn.role, content=turn.content)]
    texts: list[str] = []
    calls: list[ToolCall] = []
    results: list[ChatMessage] = []
    for i, block in enumerate(turn.content):
        match block:
            case TextPart():
                texts.append(block.text)
            case ToolUse() if turn.role == "assistant":
                function = FunctionCall(name=block.name, arguments=json.dumps(block.input))
                calls.append(ToolCall(id=block.id, type="function", function=function))
            case ToolResult() if turn.role == "user":
                results.append(_result(block))
            case Thinking():
                pass
            case _:
                field = f"{where}.content[{i}].type"
                raise BadRequest(f"{field}: the {turn.role} cannot say {block.type}", field)
    if results and not texts:
        return results
    said = ChatMessage(role=turn.role, content="\n".join(texts), tool_calls=calls or None)
    return [*results, said]


def _result(block: ToolResult) -> ChatMessage:
    content = block.content or ""
    text = content if isinstance(content, str) else "\n".join(part.text for part in content)
    if block.is_error:
        text = f"Error: {text}"
    return ChatMessage(role="tool", content=text, tool_call_id=block.tool_use_id)
