"""Every answer is counted by route and status, and logged where that is wanted. Plain ASGI.

The last to see an exception that nobody foresaw: it becomes a 500 with our error object, whose
headers the middleware around it still sees.
"""

from __future__ import annotations

import logging
import time

from sse_starlette.sse import SendTimeoutError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .metrics import Metrics

logger = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds by machines
NO_ROUTE = "none"


class Access:
    """Middleware around everything that answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.answered(scope["method"], route_of(scope), status)
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except SendTimeoutError:
            logger.warning("%s: the client has stopped reading", scope["path"])
        except Exception:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if status:
                raise  # half an answer: the connection ends, so that nobody takes it for whole
            error = ApiError("the server failed on this request; its log says why")
            await JSONResponse(error.body(), error.status)(scope, receive, counted)
        finally:
            if self._log and scope["path"] not in OPEN_PATHS:
                seconds = time.perf_counter() - started
                logger.info("%s %s %d %.3f s", scope["method"], scope["path"], status, seconds)


def route_of(scope: Scope) -> str:
    """The route's template, never the path that was asked for: labels must stay few."""
    return getattr(scope.get("route"), "path", NO_ROUTE)
