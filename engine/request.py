"""What a caller wants sampled, and one request's life in tokens. Knows no tensor and no text."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum

from .grammar import Constraint


class FinishReason(StrEnum):
    """Why a request ended; the value is what the OpenAI wire says."""

    STOP = "stop"  # an end-of-sequence or stop token was sampled
    LENGTH = "length"  # max_tokens, or the model's context, is used up
    ABORT = "abort"  # the caller went away
    ERROR = "error"  # this request could not be computed; the output says why


@dataclass(frozen=True, slots=True)
class PageChoice:
    """How much of its context each generated token of a request reads; sizes in tokens.

    `budget` at most, in whole pages; with `share` below 1 no more pages than are thought to get so
    much of the attention. `gated`: the trained gate chooses. Contexts up to `beyond` are read in
    full.
    """

    budget: int
    share: float = 1.0
    gated: bool = False
    beyond: int = 0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. The defaults sample the model's own distribution.

    `logprobs` is None for none, else the number of most likely alternatives to report beside the
    sampled token (0 reports the sampled token alone); `prompt_logprobs` is the same for the tokens
    of the prompt. `top_k=0` and `min_p=0` are off. `grammar` is what the answer must follow, in
    llguidance's format, to its end: neither `ignore_eos` nor `min_tokens` goes with it.

    `threshold` replaces the one above which the model's predictors keep a neuron; minus infinity
    keeps all. `report_active` asks for the share of neurons that the request's tokens kept. `pages`
    is None for attention over all of the context. Only requests of one `cache_salt` share prefixes.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None
    threshold: float | None = None
    report_active: bool = False
    pages: PageChoice | None = None
    cache_salt: str = ""

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty)
        return penalties != (0.0, 0.0, 1.0)

    @property
    def has_limits(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def is_plain(self) -> bool:
        """The most likely token is all that is asked for."""
        asks_more = self.logit_bias or self.min_tokens or self.logprobs is not None
        shaped = asks_more or self.has_penalties or self.grammar is not None
        return self.is_greedy and not shaped


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: its tokens, how many of them have K/V, and the pages that hold it.

    `num_computed_tokens` must catch up with `num_tokens`; prefill, prefix hits and resuming after a
    preemption are that one subtraction. Tokens that the device has sampled but the host has not yet
    read are counted in `num_in_flight`, so `num_tokens` runs ahead of `len(token_ids)` by it.
    """

    id: str
    token_ids: list[int]  # prompt, then every settled output token
    sampling: SamplingParams
    num_prompt_tokens: int
    num_computed_tokens: int = 0
    num_in_flight: int = 0
    num_scored_tokens: int = 0  # of the prompt, whose successor's logprob is on its way or known
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache at first admission
    row: int | None = None  # the permanent device row, while running
    pages: list[int] = field(default_factory=list[int])
    page_hashes: list[bytes] = field(default_factory=list[bytes])  # chained, one per full page
    num_preemptions: int = 0
    # seconds of the engine's clock; 0.0 is not yet
    arrived_at: float = 0.0
    started_at: float = 0.0
    first_token_at: float = 0.0
    finish: FinishReason | None = None
    active_sum: float = 0.0  # of the active fractions of `num_measured` of its tokens
    num_measured: int = 0
    constraint: Constraint | None = None
    is_plain: bool = field(init=False)  # its sampling's, asked for in every step

    def __post_init__(self) -> None:
        self.is_plain = self.sampling.is_plain

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output_tokens(self) -> int:
        return self.num_tokens - self.num_prompt_tokens

    @property
    def waits_for_its_token(self) -> bool:
        """Its grammar must read the token that is in flight before it can say what may follow."""
        return self.constraint is not None and self.num_in_flight > 0

    @property
    def num_exact_tokens(self) -> int:
        """How many of its first tokens attend to all of their context: their K/V is everybody's."""
        pages = self.sampling.pages
        return sys.maxsize if pages is None else max(self.num_prompt_tokens, pages.beyond)

    @property
    def page_salt(self) -> bytes:
        """What else than its tokens decides its K/V, or who may see that they are there."""
        s = self.sampling
        return (
            b""
            if s.threshold is None and not s.cache_salt
            else repr((s.threshold, s.cache_salt)).encode()
        )

    @property
    def active_fraction(self) -> float | None:
        """The mean over its measured tokens; None if it did not ask."""
        asked = self.sampling.report_active and self.num_measured > 0
        return self.active_sum / self.num_measured if asked else None

    @property
    def is_scored(self) -> bool:
        """Nothing of its prompt is to be scored, now or any more."""
        asked = self.sampling.prompt_logprobs is not None
        return not asked or self.num_scored_tokens >= self.num_prompt_tokens - 1

    def unscored(self, start: int, end: int) -> range:
        """Positions in [start, end) from which the next prompt token is still to be scored."""
        if self.is_scored:
            return range(0)
        return range(max(start, self.num_scored_tokens), min(end, self.num_prompt_tokens - 1))
