"""What crosses the pipe between the API process and the engine process. Plain data, no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .request import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class Submit:
    """A new request: `prompt` holds at least one token id, each below the vocabulary size."""

    id: str
    prompt: list[int]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class Abort:
    """Forget these requests; ids that have already ended are ignored."""

    ids: list[str]


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    """Forget every prefix that no running request holds."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of the sampled token and of the most likely ones, before any penalty."""

    sampled: float
    top: list[tuple[int, float]]  # (token id, logprob), most likely first


class Output(NamedTuple):
    """What one step brought one request: a token, an end, scores of its prompt.

    A named tuple because there is one a token: pickled and made in a third of the time.

    A stop token is delivered with `finish=STOP` and is not part of the text. `error` is set exactly
    when `finish` is ERROR; `out_of_memory` says that the same request may succeed later.
    """

    id: str
    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None  # of the prompt tokens next in order
    active_fraction: float | None = None  # with `finish`, for who asked
    out_of_memory: bool = False


class RequestTimes(NamedTuple):
    """Where the seconds of a request that has ended went."""

    queued: float  # from its arrival in the engine to its first step
    prefill: float  # from there to its first token
    decode: float  # from there to its last token
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Activity:
    """Shares of each layer's FFN neurons in one step, 0 to 1."""

    active: list[float]  # that a token computes, on average
    union: list[float]  # that any token of the step computes

    @property
    def active_fraction(self) -> float:
        return sum(self.active) / len(self.active)

    @property
    def union_fraction(self) -> float:
        return sum(self.union) / len(self.union)


@dataclass(frozen=True, slots=True)
class AttentionInfo:
    """What a server that may read a part of the context offers; sizes in tokens.

    `budget`, `share` and `mode` are those of a request that does not say.
    """

    mode: str  # full, bound or gate
    modes: list[str]
    budget: int
    share: float
    least_budget: int  # a smaller one leaves nothing to choose
    beyond: int  # shorter contexts are read in full
    gates: str | None = None  # what the trained gates were measured to do
    gates_from: str | None = None  # "model": its own; else the folder that was given

    def reads_in_full(self, budget: int, share: float) -> int:
        """Up to which context a request of this budget and share reads all of it, in tokens.

        As many pages as the budget takes are all there are: nothing needs to be chosen yet.
        """
        return self.beyond if share < 1 else max(self.beyond, budget)


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one step did, for metrics."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_pages_held: int = 0
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    num_prefix_hits: int = 0  # of these, found
    step_seconds: float = 0.0
    ffn_mode: str = ""
    activity: Activity | None = None  # measured now and then; None in between
    pages_read: float | None = None  # share of its pages that a token with a budget reads; the same
    ended: tuple[RequestTimes, ...] = ()  # of requests that got a token


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The one message per step."""

    outputs: list[Output]
    stats: StepStats


@dataclass(frozen=True, slots=True)
class FfnTiming:
    """What one layer's FFN takes for a step of `num_tokens`, by mode, and which mode is taken."""

    num_tokens: int
    microseconds: dict[str, float]
    chosen: str


@dataclass(frozen=True, slots=True)
class PredictorInfo:
    """What chooses neurons: the model's own predictors, or separate ones."""

    type: str
    thresholds: list[float]  # what a score must exceed, one a layer, or one for all
    separate: bool = False  # made beside the model: not part of its function
    measured: dict[str, object] | None = None  # what separate ones cost on text, where it is known
    rounded_to: str | None = None  # float8: not the checkpoint's function, even if they are its own


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine is, once it can make a token: start-up log, `/health` and `/v1/models`."""

    model: str
    family: str
    exact: bool
    approximation: str | None  # what is approximate, when `exact` is False
    device: str
    dtype: str
    kernels: dict[str, str]  # op -> implementation, as `ops.chosen()` says
    num_parameters: int
    vocab_size: int
    max_model_len: int
    page_size: int
    num_pages: int
    max_num_seqs: int
    eos_token_ids: list[int]
    sparse: bool = False  # whether it has neurons that can be skipped
    predictors: PredictorInfo | None = None
    ffn_modes: dict[int, str] = field(default_factory=dict[int, str])  # largest step -> mode
    ffn_timings: list[FfnTiming] = field(default_factory=list[FfnTiming])  # empty: not measured
    attention: AttentionInfo | None = None  # None: every token reads all of its context
    synthetic: str | None = None  # how the weights were drawn, when no checkpoint holds them


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The engine could not start; `message` is for the operator."""

    message: str


ToEngine = Submit | Abort | ResetPrefixCache
FromEngine = StepOutput | EngineInfo | StartFailed
