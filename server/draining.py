"""uvicorn, stopped in two parts: first nothing new begins, then the socket is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Generator

import uvicorn
from sse_starlette.sse import AppStatus

from .service import Service

logger = logging.getLogger(__name__)
GOODBYE_SECONDS = 2  # for answers that are already complete to reach their clients


class Server(uvicorn.Server):
    """uvicorn, but signals are ours: it would raise them again at its end, and exit by them.

    Stopping has two parts. While streams finish, connections are still taken, so that `/ready` can
    say 503 and newcomers are told to go elsewhere; only then is the socket closed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        drain_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(config)
        self._tls = tls
        self.on_started: Callable[[], None] = lambda: None
        self._service = service
        self._drain_seconds = drain_seconds
        self._draining: asyncio.Task[None] | None = None
        # Streams end by themselves while we drain; sse-starlette would cut them at the signal.
        AppStatus.disable_automatic_graceful_drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.ssl = self._tls  # uvicorn would read the files again
        await super().startup(sockets)
        self.on_started()

    def stop(self) -> None:
        """Take nothing new and let open answers end; the second time, end them."""
        if self._draining is None:
            self._service.draining = True
            self._draining = asyncio.create_task(self._drain())
        else:
            self.force_exit = self.should_exit = True

    async def _drain(self) -> None:
        """Until nothing is open, or the time is up: what still runs is then cut."""
        service = self._service
        logger.info("shutting down: %d answers are open", service.num_open)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_seconds):
                await service.idle.wait()
        if service.num_open:
            logger.warning("shutting down: %d answers are cut", service.num_open)
            self.force_exit = True
        self.should_exit = True
