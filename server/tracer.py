"""What a server needs of tracing, so that only who wants traces needs its packages."""

from __future__ import annotations

from typing import Protocol

from starlette.types import ASGIApp

from .metrics import Ended


class Tracer(Protocol):
    """Sees every request, and what each cost."""

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Around everything that answers."""
        ...

    def ended(self, ended: Ended) -> None:
        """Listens to the service."""
        ...

    def close(self) -> None:
        """Send what is left; may block."""
        ...
