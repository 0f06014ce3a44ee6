"""What a dashboard sees: vLLM's meanings and buckets under our prefix. Knows no request object."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..engine.messages import StepStats

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
INTER_TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
REQUEST_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0),
    *(10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)
PREFIX = "turbosparse"
LABEL = "model_name"


class Metrics:
    """One registry for one served model. Times are in seconds."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._name = model_name
        self._running = self._gauge("num_requests_running", "Requests in the running batch")
        self._waiting = self._gauge("num_requests_waiting", "Requests that wait to be run")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Share of the K/V pages held, 0 to 1")
        self._active = self._gauge(
            "ffn_active_fraction", "Share of FFN neurons computed, mean over layers and tokens"
        )
        self._union = self._gauge(
            "ffn_union_fraction", "Share of FFN neurons that any token of a step computes"
        )
        self._preemptions = self._counter("num_preemptions", "Requests preempted")
        self._prefix_queries = self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache"
        )
        self._prefix_hits = self._counter("prefix_cache_hits", "Of these, found")
        self._steps = Counter(
            "steps", "Steps by FFN mode", [LABEL, "ffn_mode"], PREFIX, registry=self._registry
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, as usage counts them")
        self._generation_tokens = self._counter(
            "generation_tokens", "Completion tokens, as usage counts them"
        )
        self._finished = Counter(
            "request_success",
            "Choices that ended, by reason",
            [LABEL, "finished_reason"],
            PREFIX,
            registry=self._registry,
        )
        self._refused = self._counter(
            "requests_refused", "Requests refused because the queue is full"
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "From admission to the first token", FIRST_TOKEN_BUCKETS
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a choice", INTER_TOKEN_BUCKETS
        )
        self._request = self._histogram(
            "e2e_request_latency_seconds", "From admission to the end of a request", REQUEST_BUCKETS
        )

    def _gauge(self, name: str, help: str) -> Gauge:
        return Gauge(name, help, [LABEL], PREFIX, registry=self._registry).labels(self._name)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(name, help, [LABEL], PREFIX, registry=self._registry).labels(self._name)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
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
        if stats.ffn_mode:
            self._steps.labels(self._name, stats.ffn_mode).inc()
        self._preemptions.inc(stats.num_preemptions)
        self._prefix_queries.inc(stats.num_prefix_queries)
        self._prefix_hits.inc(stats.num_prefix_hits)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def inter_token(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` arrived together, `seconds` after those before them."""
        for _ in range(num_tokens):
            self._inter_token.observe(seconds / num_tokens)

    def refused(self) -> None:
        self._refused.inc()

    def ended(
        self, seconds: float, num_prompt: int, num_generated: int, reasons: list[str]
    ) -> None:
        """A request is over; one reason for each of its choices."""
        self._request.observe(seconds)
        self._prompt_tokens.inc(num_prompt)
        self._generation_tokens.inc(num_generated)
        for reason in reasons:
            self._finished.labels(self._name, reason).inc()

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)
