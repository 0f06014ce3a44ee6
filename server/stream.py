"""A generation as an HTTP answer: whole, or as server-sent events; ended when the client leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import ExitStack
from typing import Protocol

from sse_starlette import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .errors import ApiError, GenerationFailed
from .generation import Answer, Generation, Piece

logger = logging.getLogger(__name__)
PING_SECONDS = 15  # a comment, while a request waits or its prompt is computed
SEND_SECONDS = 60  # for a client to take one event; one that never reads would be open for ever


class Dialect(Protocol):
    """How one API says an answer; made for one generation."""

    def opening(self) -> Iterable[bytes]:
        """Events before the first piece."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """The events of a piece; empty where it has nothing to show yet."""
        ...

    def closing(self) -> bytes:
        """Events after the last piece."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """The events that end a stream which cannot go on."""
        ...

    def whole(self, answers: list[Answer]) -> dict[str, object]:
        """The answer to a request that does not stream."""
        ...


async def respond(
    generation: Generation,
    speak: Callable[[Generation], Dialect],
    request: Request,
    *,
    stream: bool,
) -> Response:
    """The HTTP answer; the generation is closed when it ends, however it ends."""
    with ExitStack() as ending:
        ending.callback(generation.close)
        dialect = speak(generation)
        if not stream:
            return JSONResponse(dialect.whole(await _unless_left(request, generation.answers())))
        ending.pop_all()
        return EventSourceResponse(
            _events(generation, dialect),
            headers={"Cache-Control": "no-cache"},
            ping=PING_SECONDS,
            send_timeout=SEND_SECONDS,
            # A client that leaves before the first event leaves a generator that never began.
            background=BackgroundTask(generation.close),
        )


async def _events(generation: Generation, dialect: Dialect) -> AsyncIterator[bytes]:
    try:
        for event in dialect.opening():
            yield event
        async for piece in generation.pieces():
            event = dialect.piece(piece)
            if event:
                yield event
        ending = dialect.closing()
    except ApiError as error:
        ending = dialect.failure(error)
    except Exception:  # a fault of ours: the client is told, and the trace is for whoever mends it
        logger.exception("a stream broke")
        ending = dialect.failure(GenerationFailed("the server failed on this request"))
    finally:
        generation.close()
    yield ending


async def _unless_left(
    request: Request, answer: Coroutine[None, None, list[Answer]]
) -> list[Answer]:
    """Wait for the answer, or for the client to go: then raise ClientDisconnect."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientDisconnect
        return answering.result()
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
