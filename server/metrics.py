"""What a dashboard sees: vLLM's meanings and buckets under our prefix. Knows no request object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from ..engine.messages import EngineInfo, RequestTimes, StepStats

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
INTER_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0),
    *(15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_BUCKETS = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
STEP_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
PREFIX = "turbosparse"
LABEL = "model_name"


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that is over; one reason for each of its choices."""

    id: str
    model: str
    seconds: float
    num_prompt: int
    num_generated: int
    num_cached: int
    reasons: list[str]
    first_token_seconds: float | None


class Metrics:
    """One registry for one served model. Times are in seconds."""

    def __init__(self, model_name: str, info: EngineInfo) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._name = model_name
        self._of_steps()
        self._of_requests(token_buckets(info.max_model_len))
        self._engine_info(info)

    def _of_steps(self) -> None:
        self._running = self._gauge("num_requests_running", "Requests in the running batch")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait to be run")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Share of the K/V pages held, 0 to 1")
        self._active = self._gauge(
            "ffn_active_fraction", "Share of FFN neurons computed, mean over layers and tokens"
        )
        self._union = self._gauge(
            "ffn_union_fraction", "Share of FFN neurons that any token of a step computes"
        )
        self._pages_read = self._gauge(
            "attention_pages_read_fraction",
            "Share of its K/V pages that a token with a page budget reads",
        )
        self._preemptions = self._counter("num_preemptions", "Requests preempted")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache"
        )
        self._prefix_hits = self._counter("prefix_cache_hits", "Of these, found")
        self._steps = self._labelled("steps", "Steps by FFN mode", "ffn_mode")
        self._step_seconds = self._histogram("step_seconds", "Time of a step", STEP_BUCKETS)
        self._step_tokens = self._histogram(
            "iteration_tokens", "Tokens that a step computed, of prompts too", STEP_TOKENS_BUCKETS
        )

    def _of_requests(self, token_buckets: Sequence[float]) -> None:
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, as usage counts them")
        self._generation_tokens = self._counter(
            "generation_tokens", "Completion tokens, as usage counts them"
        )
        self._cached_tokens = self._counter(
            "prompt_tokens_cached", "Prompt tokens found in the prefix cache, as usage counts them"
        )
        self._finished = self._labelled(
            "request_success", "Choices that ended, by reason", "finished_reason"
        )
        self._refused = self._counter(
            "requests_refused", "Requests refused because the queue is full"
        )
        self._http = self._labelled("http_requests", "HTTP answers", "method", "route", "status")
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From admission to the first token", FIRST_TOKEN_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a choice", INTER_TOKEN_BUCKETS
        )
        self._request = self._histogram(
            "e2e_request_latency_seconds", "From admission to the end of a request", REQUEST_BUCKETS
        )
        self._queue = self._histogram(
            "request_queue_time_seconds",
            "From the engine's queue to the first step",
            REQUEST_BUCKETS,
        )
        self._prefill = self._histogram(
            "request_prefill_time_seconds",
            "From the first step to the first token",
            REQUEST_BUCKETS,
        )
        self._decode = self._histogram(
            "request_decode_time_seconds", "From the first token to the last", REQUEST_BUCKETS
        )
        self._inference = self._histogram(
            "request_inference_time_seconds",
            "From the first step to the last token",
            REQUEST_BUCKETS,
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "A choice's mean time between tokens",
            INTER_TOKEN_BUCKETS,
        )
        self._request_prompt = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request", token_buckets
        )
        self._request_generation = self._histogram(
            "request_generation_tokens", "Completion tokens of a request", token_buckets
        )

    def _engine_info(self, info: EngineInfo) -> None:
        labels = {
            "family": info.family,
            "device": info.device,
            "dtype": info.dtype,
            "exact": str(info.exact).lower(),
            "num_pages": str(info.num_pages),
            "page_size": str(info.page_size),
        }
        self._labelled_gauge("engine_info", "What runs; always 1", *labels).labels(
            self._name, *labels.values()
        ).set(1)

    def _labelled(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, [LABEL, *labels], PREFIX, registry=self._registry)

    def _labelled_gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(name, help, [LABEL, *labels], PREFIX, registry=self._registry)

    def _gauge(self, name: str, help: str) -> Gauge:
        return self._labelled_gauge(name, help).labels(self._name)

    def _counter(self, name: str, help: str) -> Counter:
        return self._labelled(name, help).labels(self._name)

    def _histogram(self, name: str, help: str, buckets: Sequence[float]) -> Histogram:
        histogram = Histogram(name, help, [LABEL], PREFIX, buckets=buckets, registry=self._registry)
        return histogram.labels(self._name)

    def step(self, stats: StepStats) -> None:
        """Listens to the engine: once a step, not once a token."""
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting)
        self._kv_usage.set(stats.num_pages_held / max(1, stats.num_pages))
        if stats.activity is not None:
            self._active.set(stats.activity.active_fraction)
            self._union.set(stats.activity.union_fraction)
        if stats.pages_read is not None:
            self._pages_read.set(stats.pages_read)
        if stats.ffn_mode:
            self._steps.labels(self._name, stats.ffn_mode).inc()
            self._step_seconds.observe(stats.step_seconds)
            self._step_tokens.observe(stats.num_prefill_tokens + stats.num_decode_tokens)
        self._preemptions.inc(stats.num_preemptions)
        self._prefix_queries.inc(stats.num_prefix_queries)
        self._prefix_hits.inc(stats.num_prefix_hits)
        for times in stats.ended:
            self._times(times)

    def _times(self, times: RequestTimes) -> None:
        self._queue.observe(times.queued)
        self._prefill.observe(times.prefill)
        self._decode.observe(times.decode)
        self._inference.observe(times.prefill + times.decode)
        if times.num_output_tokens > 1:
            self._per_token.observe(times.decode / (times.num_output_tokens - 1))

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def inter_token(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` arrived together, `seconds` after those before them."""
        for _ in range(num_tokens):
            self._inter_token.observe(seconds / num_tokens)

    def refused(self) -> None:
        self._refused.inc()

    def answered(self, method: str, route: str, status: int) -> None:
        """An HTTP answer has begun."""
        self._http.labels(self._name, method, route, str(status)).inc()

    def ended(self, ended: Ended) -> None:
        """A request is over."""
        self._request.observe(ended.seconds)
        self._prompt_tokens.inc(ended.num_prompt)
        self._cached_tokens.inc(ended.num_cached)
        self._generation_tokens.inc(ended.num_generated)
        self._request_prompt.observe(ended.num_prompt)
        self._request_generation.observe(ended.num_generated)
        for reason in ended.reasons:
            self._finished.labels(self._name, reason).inc()

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)


def token_buckets(max_model_len: int) -> list[float]:
    """1, 2, 5, 10, 20, 50 ... up to the context length, as vLLM has them."""
    found: list[float] = []
    power = 1
    while power <= max_model_len:
        found += [m * power for m in (1, 2, 5) if m * power <= max_model_len]
        power *= 10
    return found
