"""OpenTelemetry: one span a request, with what it cost in tokens and seconds. An extra.

Continues the trace of a client that sends `traceparent`. Imported only where it is switched on.
"""

from __future__ import annotations

from contextvars import ContextVar

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from .access import OPEN_PATHS, route_of
from .metrics import Ended

_span: ContextVar[Span | None] = ContextVar("span", default=None)


class Tracing:
    """Sends spans to a collector in batches, from a thread of its own. `close` sends the last."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "turbosparse", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("turbosparse")

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """A span around every request, but for those of health, ready and metrics."""

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
                await app(scope, receive, send)
                return
            parent = extract(dict(Headers(scope=scope).items()), context=context.Context())
            with self._tracer.start_as_current_span(
                f"{scope['method']} {scope['path']}", parent, SpanKind.SERVER
            ) as span:
                _span.set(span)
                await app(scope, receive, _observed(span, scope, send))

        return traced

    def ended(self, ended: Ended) -> None:
        """Listens to the service: names of the semantic conventions for generative AI."""
        span = _span.get()
        if span is None:
            return
        span.set_attributes(
            {
                "gen_ai.response.id": ended.id,
                "gen_ai.request.model": ended.model,
                "gen_ai.usage.input_tokens": ended.num_prompt,
                "gen_ai.usage.output_tokens": ended.num_generated,
                "gen_ai.usage.cache_read.input_tokens": ended.num_cached,
                "gen_ai.response.finish_reasons": ended.reasons,
                "turbosparse.request_seconds": ended.seconds,
            }
        )
        if ended.first_token_seconds is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", ended.first_token_seconds)

    def close(self) -> None:
        """Send what is left; blocks for as long as the collector does not answer."""
        self._provider.shutdown()


def _observed(span: Span, scope: Scope, send: Send) -> Send:
    async def observed(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.update_name(f"{scope['method']} {route_of(scope)}")
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("http.route", route_of(scope))
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                span.set_status(StatusCode.ERROR)
        await send(message)

    return observed
