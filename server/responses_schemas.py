"""What `/v1/responses` takes, and the chat that it means. Nothing is kept between requests."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import Discriminator, Field, Tag

from .errors import BadRequest
from .refusals import Harmless, refuse
from .schemas import (
    MAX_TOOLS,
    Body,
    ChatMessage,
    ChatRequest,
    Count,
    Function,
    FunctionCall,
    FunctionName,
    JsonSchema,
    NamedTool,
    ResponseFormat,
    Sparsity,
    Tool,
    ToolCall,
)

# The chat's fields, and what they are called here.
FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}
UNSUPPORTED: dict[str, Harmless] = {
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "background": (False,),
    "truncation": ("disabled",),
    "include": ([], ["reasoning.encrypted_content"]),
    "max_tool_calls": (),
    "top_logprobs": (0,),
}
REASONING: dict[str, Harmless] = {"effort": ("none",)}


class Part(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(Body):
    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class InputCall(Body):
    """A call in an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class InputResult(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]


class Unknown(Body):
    """Whatever else an item may be: refused by its type."""

    type: Literal["message", "function_call", "function_call_output"]


def _kind(item: object) -> str:
    said = cast("dict[str, object]", item) if isinstance(item, dict) else {}
    kinds = {"function_call": "Call", "function_call_output": "Result", "message": "Message"}
    return kinds.get(str(said.get("type", "message")), "Unknown")


Item = Annotated[
    Annotated[InputMessage, Tag("Message")]
    | Annotated[InputCall, Tag("Call")]
    | Annotated[InputResult, Tag("Result")]
    | Annotated[Unknown, Tag("Unknown")],
    Discriminator(_kind),
]


class ResponsesTool(Function):
    """A function; OpenAI's own tools have another `type`."""

    type: Literal["function"]


class ResponsesNamedTool(Body):
    type: Literal["function"]
    name: str


class TextFormat(JsonSchema):
    type: Literal["text", "json_object", "json_schema"]


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(Body):
    """`POST /v1/responses`."""

    model: str | None = None
    input: Annotated[str, Field(min_length=1)] | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    tools: Annotated[list[ResponsesTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: dict[str, object] | None = None
    sparsity: Sparsity | None = None


def to_chat(request: ResponsesRequest) -> ChatRequest:
    """The chat that a request means; raises BadRequest."""
    refuse(request.model_extra, UNSUPPORTED, "")
    refuse(request.reasoning, REASONING, "reasoning.")
    choice = request.tool_choice
    if not request.tools and choice == "auto":
        choice = None
    if isinstance(choice, ResponsesNamedTool):
        choice = NamedTool(type="function", function=FunctionName(name=choice.name))
    return ChatRequest.model_construct(
        model=request.model,
        messages=_messages(request),
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        stream=request.stream,
        tools=[_tool(tool) for tool in request.tools] if request.tools else None,
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request.text),
        sparsity=request.sparsity,
    )


def _format(text: TextOptions | None) -> ResponseFormat | None:
    form = None if text is None else text.format
    if form is None:
        return None
    schema = form if form.type == "json_schema" else None
    return ResponseFormat(type=form.type, json_schema=schema)


def _tool(tool: ResponsesTool) -> Tool:
    said = {"name", "description", "parameters", "strict"} & tool.model_fields_set
    function = Function.model_construct(said, **{name: getattr(tool, name) for name in said})
    return Tool(type="function", function=function)


def _messages(request: ResponsesRequest) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    if request.instructions:
        messages.append(ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        return [*messages, ChatMessage(role="user", content=request.input)]
    for i, item in enumerate(request.input):
        match item:
            case InputMessage():
                messages.append(ChatMessage(role=item.role, content=_text(item.content)))
            case InputCall():
                _add_call(messages, item)
            case InputResult():
                text = _text(item.output)
                messages.append(ChatMessage(role="tool", content=text, tool_call_id=item.call_id))
            case Unknown():
                raise BadRequest(f"input[{i}] is not valid", f"input[{i}]")
    return messages


def _add_call(messages: list[ChatMessage], item: InputCall) -> None:
    """Calls belong to the assistant's turn before them; the first may be all there is of one."""
    function = FunctionCall(name=item.name, arguments=item.arguments)
    call = ToolCall(id=item.call_id, type="function", function=function)
    if messages and messages[-1].role == "assistant":
        messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), call]
    else:
        messages.append(ChatMessage(role="assistant", content=None, tool_calls=[call]))


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
