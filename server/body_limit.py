"""No request body larger than the limit is read, whatever length it declares. Plain ASGI."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Raises HTTPException(413) where the body is read, so that our error shape answers it.

    Starlette's own middleware answers in plain text.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        num_declared = int(declared) if declared.isdecimal() else 0
        num_received = 0

        async def limited() -> Message:
            nonlocal num_received
            self._check(num_declared)  # refused before any of it is read
            message = await receive()
            num_received += len(message.get("body", b""))
            self._check(num_received)
            return message

        await self._app(scope, limited, send)

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise HTTPException(413, f"the body is larger than {self._max_bytes:,} bytes")
