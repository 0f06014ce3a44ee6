"""What a request may say: the fields of chat and text completions, their types and bounds.

Unknown and bookkeeping fields are accepted. Fields that would change the answer and are not
supported are in `UNSUPPORTED`, with the values that change nothing; null always means absent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .errors import BadRequest

INT64 = 1 << 63
MAX_STOP = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20

Count = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    """Strict about what it knows (no "7" for 7), lenient about what it does not."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class TextPart(Body):
    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One turn; the role `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(Body):
    include_usage: bool | None = None


class CompletionFields(Body):
    """What chat and text completions share."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: dict[str, Bias] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(CompletionFields):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


Prompt = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(CompletionFields):
    """`POST /v1/completions`: a text, its token ids, or a list of either."""

    prompt: Prompt | TokenIds | Annotated[list[Prompt] | list[TokenIds], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        token_ids = [t for t in self.prompt if isinstance(t, int)]
        return [token_ids] if token_ids else [p for p in self.prompt if not isinstance(p, int)]


UNSUPPORTED: dict[str, tuple[object, ...]] = {
    # chat
    "tools": (),
    "tool_choice": ("none",),
    "functions": (),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    # text
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "prompt_embeds": (),
    # vLLM's and SGLang's
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
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
UNSUPPORTED_IN_MESSAGES = ("tool_calls", "function_call", "audio", "tool_call_id")


def refuse_unsupported(request: CompletionFields) -> None:
    """Raise BadRequest for the first field that would change the answer and cannot be honoured."""
    extra = request.model_extra or {}
    for name, harmless in UNSUPPORTED.items():
        value: object = extra.get(name)
        if value is not None and not any(value == h and type(value) is type(h) for h in harmless):
            raise BadRequest(f"{name} is not supported by this server", name)
    options = request.stream_options
    if options is not None:
        if not request.stream:
            raise BadRequest("stream_options is only allowed with stream: true", "stream_options")
        if (options.model_extra or {}).get("continuous_usage_stats"):
            name = "stream_options.continuous_usage_stats"
            raise BadRequest(f"{name} is not supported by this server", name)


def refuse_unsupported_messages(messages: list[ChatMessage]) -> None:
    """The same for what a message carries beside its text."""
    for i, message in enumerate(messages):
        extra = message.model_extra or {}
        for name in UNSUPPORTED_IN_MESSAGES:
            if extra.get(name):
                param = f"messages[{i}].{name}"
                raise BadRequest(f"{param} is not supported by this server", param)
