"""What a request may say: the fields of chat and text completions, their types and bounds.

Unknown and bookkeeping fields are accepted; `refusals` lists those that would change the answer and
are not supported. Null always means absent.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

INT64 = 1 << 63
MAX_STOP = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_TOOLS = 128

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


class FunctionCall(Body):
    name: str
    arguments: str  # JSON text, as the model wrote it


class ToolCall(Body):
    """A call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Body):
    """One turn; the role `developer` is OpenAI's newer word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Body):
    """What a tool does and takes; `parameters` is a JSON schema, absent for none."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's way to say what the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's way to say the same, and more: exactly one of these."""

    json_: Annotated[str | dict[str, object] | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None


class Sparsity(Body):
    """Which function of the model computes this request, and whether to report what it skipped.

    `mode` and `threshold` are of neurons; a `mode` of exact is of all.
    """

    mode: Literal["exact", "approximate"] | None = None
    threshold: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    attention: Literal["full", "bound", "gate"] | None = None
    page_budget: Annotated[int, Field(ge=1)] | None = None
    page_share: Annotated[float, Field(gt=0, le=1)] | None = None
    report: bool | None = None


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


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
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, object] | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    sparsity: Sparsity | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Usage so far in every chunk; as in vLLM only beside `include_usage`."""
        options = self.stream_options
        return self.include_usage and options is not None and bool(options.continuous_usage_stats)


Messages = Annotated[list[ChatMessage], Field(min_length=1)]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class TemplateFields(Body):
    """How the chat template is to write a conversation."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None


class ChatRequest(CompletionFields, TemplateFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: Count | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


Prompt = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(CompletionFields):
    """`POST /v1/completions`: a text, its token ids, or a list of either."""

    prompt: Prompt | TokenIds | Annotated[list[Prompt] | list[TokenIds], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None  # 0 with echo: the prompt alone
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        token_ids = [t for t in self.prompt if isinstance(t, int)]
        return [token_ids] if token_ids else [p for p in self.prompt if not isinstance(p, int)]


class TokenizeRequest(TemplateFields):
    """`POST /tokenize`: a text, or a conversation and its tools."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[TokenId]
