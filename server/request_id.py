"""Every answer carries an X-Request-Id: the client's own, or a new one. Plain ASGI."""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..engine.logs import request_id

HEADER = "x-request-id"
MAX_LENGTH = 200


class RequestIds:
    """Sets one response header, and what log lines about the request name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = Headers(scope=scope).get(HEADER, "")[:MAX_LENGTH] or uuid.uuid4().hex
        request_id.set(id)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = id
            await send(message)

        await self._app(scope, receive, send_with_id)
