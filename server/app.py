"""The ASGI application: routers, and one error shape for everything that can go wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from .. import __version__
from .access import Access
from .activity import ActivityFeed
from .body_limit import BodyLimit
from .errors import (
    ApiError,
    BadRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
)
from .guard import Guard
from .openapi import document
from .readiness import Readiness
from .request_id import RequestIds
from .routes import (
    chat,
    completions,
    health,
    messages,
    metrics,
    models,
    page,
    responses,
    server,
    tokens,
)
from .service import Service

ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    tokens.router,
    models.router,
    server.router,
    health.router,
    metrics.router,
    page.router,
)
MAX_ERRORS = 3  # of a body, named in one answer
STATUSES: dict[int, type[ApiError]] = {
    404: NotFound,
    405: MethodNotAllowed,
    413: PayloadTooLarge,
}
# Words in a validation error's location that are types of a union, not fields; our own begin with
# a capital letter.
TYPE_NAMES = frozenset({"str", "int", "float", "bool", "list", "dict", "constrained-str", "body"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What stands between the network and the routes."""

    max_body_bytes: int = 4 << 20
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    access_log: bool = False
    tracing: Callable[[ASGIApp], ASGIApp] | None = None


def create_app(service: Service, edge: Edge) -> FastAPI:
    """The whole HTTP side over one service."""
    app = describe()
    app.state.service = service
    app.state.readiness = Readiness(service.engine)
    app.state.activity = ActivityFeed(service)
    _add_middleware(app, service, edge)
    return app


def describe() -> FastAPI:
    """The routes and their errors over no service: enough for the OpenAPI document."""
    app = FastAPI(
        title="turbosparse",
        version=__version__,
        description="OpenAI-compatible inference of activation-sparse language models.",
    )
    for router in ROUTERS:
        app.include_router(router)
    document(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    return app


def _add_middleware(app: FastAPI, service: Service, edge: Edge) -> None:
    """From the inside out: the last one added is the first to see a request."""
    app.add_middleware(BodyLimit, max_bytes=edge.max_body_bytes)
    if edge.api_keys:
        app.add_middleware(Guard, keys=edge.api_keys)
    if edge.cors_origins:  # around the guard: a browser asks first, without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=edge.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    app.add_middleware(Access, metrics=service.metrics, log=edge.access_log)
    if edge.tracing is not None:
        app.add_middleware(edge.tracing)
    app.add_middleware(RequestIds)


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems[0]["type"] == "json_invalid":
        return _answer(BadRequest(f"the body is not JSON: {problems[0]['ctx']['error']}"))
    found: dict[str, str] = {}
    for problem in problems:
        found.setdefault(field_name(problem["loc"]), problem["msg"])
    # A union fails once for each of its types: the one that got furthest is what was meant.
    found = {name: m for name, m in found.items() if not any(_within(o, name) for o in found)}
    lines = [f"{name}: {m}" if name else m for name, m in list(found.items())[:MAX_ERRORS]]
    return _answer(BadRequest("; ".join(lines), next(iter(found)) or None))


def _within(name: str, outer: str) -> bool:
    return name != outer and name.startswith((f"{outer}[", f"{outer}."))


def field_name(location: Sequence[str | int]) -> str:
    """("body", "messages", 0, "role") -> "messages[0].role"."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part not in TYPE_NAMES and part.isidentifier() and not part[0].isupper():
            name += f".{part}" if name else part
    return name


async def _http_error(request: Request, error: Exception) -> Response:
    """What FastAPI refuses by itself: routes, methods, bodies too large or unreadable."""
    assert isinstance(error, HTTPException)
    kind = STATUSES.get(error.status_code, BadRequest if error.status_code < 500 else ApiError)
    message = error.detail
    if kind is NotFound:
        message = f"there is no {request.method} {request.url.path} here"
    if kind is MethodNotAllowed:
        message = f"{request.url.path} does not take {request.method}"
    answer = _answer(kind(message))
    answer.headers.update(error.headers or {})
    return answer


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it
