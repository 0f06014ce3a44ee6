"""A chat request's messages as the one text that its model's template makes of them."""

from __future__ import annotations

import json

from .chat_template import ChatTemplate, Message, TemplateRefused
from .errors import BadRequest
from .schemas import ChatMessage, ChatRequest, ToolCall
from .tool_prompt import with_tools

RESERVED = ("messages", "tools", "add_generation_prompt")  # variables that are not the client's


def conversation(request: ChatRequest, template: ChatTemplate) -> str:
    """The prompt; raises BadRequest for messages that the template or this server refuses."""
    more = request.chat_template_kwargs or {}
    for name in RESERVED:
        if name in more:
            field = f"chat_template_kwargs.{name}"
            raise BadRequest(f"{field} is the server's to say", field)
    open_turn, last = _ending(request)
    turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
    tools = [] if request.tool_choice == "none" else request.tools or []
    listed = [tool.model_dump(exclude_unset=True) for tool in tools]
    if not template.knows_tools:
        turns, listed = with_tools(turns, listed), []
    try:
        text = template.render(turns, tools=listed, open_turn=open_turn, more=more)
    except TemplateRefused as error:
        raise BadRequest(
            f"the chat template refuses these messages: {error}", "messages"
        ) from error
    return text if last is None else _cut_after(text, last)


def _ending(request: ChatRequest) -> tuple[bool, str | None]:
    """Whether the assistant's turn is opened; and the text that it is to go on from instead."""
    continues, opens = request.continue_final_message, request.add_generation_prompt
    if not continues:
        return opens is not False, None
    if opens:
        field = "continue_final_message"
        raise BadRequest(f"{field} does not go with add_generation_prompt: true", field)
    if request.messages[-1].role != "assistant" or not request.messages[-1].text.strip():
        raise BadRequest(
            "continue_final_message needs a last message of the assistant with text", "messages"
        )
    return False, request.messages[-1].text.strip()


def _cut_after(text: str, last: str) -> str:
    """The prompt up to the end of the last message's text: no marker closes the turn."""
    at = text.rfind(last)
    if at < 0:
        raise BadRequest(
            "continue_final_message: the chat template changes the last message", "messages"
        )
    return text[: at + len(last)]


def _turn(message: ChatMessage, where: str) -> Message:
    """A message as templates expect it: plain text, and whatever else the client put there."""
    role = "system" if message.role == "developer" else message.role
    turn: Message = {**(message.model_extra or {}), "role": role, "content": message.text}
    if message.tool_calls:
        turn["tool_calls"] = [
            _call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _call(call: ToolCall, where: str) -> Message:
    """Templates write the arguments as JSON themselves."""
    field = f"{where}.function.arguments"
    try:
        arguments: object = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{field} is not JSON: {error}", field) from error
    if not isinstance(arguments, dict):
        raise BadRequest(f"{field} is not a JSON object", field)
    function: Message = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
