"""Fields that would change the answer and are not supported: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import BadRequest
from .schemas import ChatMessage, ChatRequest, CompletionFields, CompletionRequest

Harmless = tuple[object, ...]  # values that change nothing

COMMON: dict[str, Harmless] = {
    "json_schema": (),
    "guided_whitespace_pattern": (),
    "guided_decoding_backend": (),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "logits_processors": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "truncate_prompt_tokens": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
}
CHAT: dict[str, Harmless] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
}
TEXT: dict[str, Harmless] = {
    "suffix": ("",),
    "best_of": (1,),
    "prompt_embeds": (),
    "tools": ([],),
}
MESSAGE: dict[str, Harmless] = {"function_call": (), "audio": ()}
STRUCTURED: dict[str, Harmless] = {
    "structural_tag": (),
    "whitespace_pattern": (),
    "disable_any_whitespace": (False,),
}


def refuse(extra: Mapping[str, object] | None, fields: Mapping[str, Harmless], where: str) -> None:
    """Raise BadRequest for the first of `fields` with a value that is not harmless; `where` is put
    before its name."""
    for name, harmless in fields.items():
        value = (extra or {}).get(name)
        if value is not None and not any(value == h and type(value) is type(h) for h in harmless):
            raise BadRequest(f"{where}{name} is not supported by this server", f"{where}{name}")


def refuse_unsupported(request: CompletionFields) -> None:
    """Raise BadRequest for what would change the answer and cannot be honoured."""
    refuse(request.model_extra, COMMON, "")
    if isinstance(request, ChatRequest):
        refuse(request.model_extra, CHAT, "")
        _refuse_in_messages(request.messages)
    if isinstance(request, CompletionRequest):
        refuse(request.model_extra, TEXT, "")
    if request.structured_outputs is not None:
        refuse(request.structured_outputs.model_extra, STRUCTURED, "structured_outputs.")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options is only allowed with stream: true", "stream_options")


def _refuse_in_messages(messages: list[ChatMessage]) -> None:
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        refuse(message.model_extra, MESSAGE, f"{where}.")
        if message.tool_calls and message.role != "assistant":
            raise BadRequest(f"{where}.tool_calls is only for the assistant", f"{where}.tool_calls")
        if message.content is None and not message.tool_calls:
            raise BadRequest(f"{where}.content is missing", f"{where}.content")
