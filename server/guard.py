"""No request passes without a key, but for health, ready and metrics. Plain ASGI."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import OPEN_PATHS
from .errors import Unauthorized


class Guard:
    """Takes `Authorization: Bearer KEY`, `X-Api-Key: KEY`, or a browser's login: KEY as password.

    Keys are compared as hashes, all of them in the same time. Only hashes are kept.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._hashes = [_hash(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key = presented(headers)
        if key is not None and self._knows(key):
            await self._app(scope, receive, send)
            return
        # A browser that is told so asks its user for a login: the page then works as it is.
        scheme = "Basic" if "text/html" in headers.get("accept", "") else "Bearer"
        said = "no API key was given" if key is None else "this API key is not known here"
        error = Unauthorized(f"{said}: send Authorization: Bearer KEY", scheme)
        await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)

    def _knows(self, key: str) -> bool:
        found = [hmac.compare_digest(_hash(key), known) for known in self._hashes]
        return any(found)


def presented(headers: Headers) -> str | None:
    """The key that a request bears, however it does."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                login = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return ""
            return login.partition(":")[2]
        case _:
            return headers.get("x-api-key")


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
