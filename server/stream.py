"""A generation as an HTTP answer: whole, or as server-sent events; ended when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass

from sse_starlette import EventSourceResponse
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from .errors import ApiError
from .generation import Generation
from .wire import DONE, Chunks, Dialect, Logprobs, error_event, whole_answer

PING_SECONDS = 15  # a comment, while a request waits or its prompt is computed


@dataclass(frozen=True, slots=True)
class Form:
    """How the client wants its answer."""

    stream: bool
    include_usage: bool
    logprobs: bool


async def respond(
    generation: Generation, dialect: Dialect, form: Form, request: Request
) -> Response:
    """The HTTP answer; the generation is closed when it ends, however it ends."""
    if form.stream:
        return EventSourceResponse(
            _events(generation, dialect, form),
            headers={"Cache-Control": "no-cache"},
            ping=PING_SECONDS,
            # A client that leaves before the first event leaves a generator that never began.
            background=BackgroundTask(generation.close),
        )
    try:
        return JSONResponse(await _unless_left(request, _collect(generation, dialect, form)))
    finally:
        generation.close()


async def _events(generation: Generation, dialect: Dialect, form: Form) -> AsyncIterator[bytes]:
    chunks = Chunks(generation, dialect, form.include_usage)
    waiting: list[Logprobs] = [[] for _ in generation.choices]  # of text that is held back
    try:
        if dialect.opening:
            for choice in generation.choices:
                yield chunks.opening(choice.index)
        async for piece in generation.pieces():
            logprobs = waiting[piece.index]
            logprobs += piece.logprobs
            if piece.text or piece.finish:
                yield chunks.piece(piece, logprobs if form.logprobs else None)
                waiting[piece.index] = []
        if form.include_usage:
            yield chunks.usage(generation.usage())
    except ApiError as error:
        yield error_event(error)
    finally:
        generation.close()
    yield DONE


async def _collect(generation: Generation, dialect: Dialect, form: Form) -> dict[str, object]:
    texts: list[list[str]] = [[] for _ in generation.choices]
    logprobs: list[Logprobs] = [[] for _ in generation.choices]
    async for piece in generation.pieces():
        texts[piece.index].append(piece.text)
        logprobs[piece.index] += piece.logprobs
    whole = ["".join(parts) for parts in texts]
    return whole_answer(generation, dialect, whole, logprobs if form.logprobs else None)


async def _unless_left(
    request: Request, answer: Coroutine[None, None, dict[str, object]]
) -> dict[str, object]:
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
