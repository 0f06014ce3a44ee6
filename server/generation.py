"""A request in the engine: its choices, read as they grow into text, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from ..engine.client import EngineClient, OutputStream
from ..engine.errors import EngineDeadError
from ..engine.messages import Output, TokenLogprobs
from ..engine.request import FinishReason
from .detokenizer import Detokenizer
from .errors import EngineDead, GenerationFailed
from .metrics import Metrics


@dataclass(slots=True)
class Piece:
    """What one choice has to show since the last piece; `finish` on its last one."""

    index: int
    text: str
    logprobs: list[tuple[int, TokenLogprobs]]  # of the tokens read, in order
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took, as the client is told."""

    num_prompt: int
    num_completion: int
    num_cached: int


class Choice:
    """One of the answers to one prompt."""

    def __init__(
        self,
        index: int,
        stream: OutputStream,
        detokenizer: Detokenizer,
        metrics: Metrics,
        started: float,
    ) -> None:
        self.index = index
        self.stream = stream
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish: str | None = None
        self._detokenizer = detokenizer
        self._metrics = metrics
        self._last_read = started

    async def next(self) -> Piece:
        """Wait for tokens and read all there are; raises GenerationFailed, EngineDeadError."""
        outputs = await self.stream.take()
        num_before = self.num_tokens
        piece = self._read(outputs)
        self._observe(num_before)
        return piece

    def _read(self, outputs: list[Output]) -> Piece:
        text, finish = "", None
        logprobs: list[tuple[int, TokenLogprobs]] = []
        for output in outputs:
            self.num_cached_tokens = output.num_cached_tokens
            if output.finish is FinishReason.ERROR:
                self.finish = "error"
                raise GenerationFailed(output.error or "the engine gave no reason")
            if output.token_id is not None:
                self.num_tokens += 1
                if output.finish is not FinishReason.STOP:  # a stop token is not text
                    text += self._detokenizer.add(output.token_id)
                    if output.logprobs is not None:
                        logprobs.append((output.token_id, output.logprobs))
            if output.finish is not None:
                finish = output.finish.value
            if self._detokenizer.stopped:
                break
        if finish is not None:
            text += self._detokenizer.finish()
        self.finish = "stop" if self._detokenizer.stopped else finish
        return Piece(self.index, text, logprobs, self.finish)

    def _observe(self, num_before: int) -> None:
        now = time.perf_counter()
        num_new, waited = self.num_tokens - num_before, now - self._last_read
        self._last_read = now
        if num_before:
            self._metrics.inter_token(waited, num_new)
        elif num_new:
            self._metrics.first_token(waited)


@dataclass(slots=True)
class Generation:
    """All choices of one request. Whoever holds it closes it; closing aborts what still runs."""

    id: str
    model: str
    num_prompt_tokens: int
    choices: list[Choice]
    num_choices_per_prompt: int
    engine: EngineClient
    resources: ExitStack
    created: int = field(default_factory=lambda: int(time.time()))

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every choice's pieces as they come; raises ApiError."""
        try:
            if len(self.choices) == 1:
                async for piece in self._pieces_of(self.choices[0]):
                    yield piece
            else:
                async for piece in self._merged():
                    yield piece
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error

    async def _pieces_of(self, choice: Choice) -> AsyncIterator[Piece]:
        while choice.finish is None:
            yield await choice.next()
        self.engine.abort([choice.stream.id])  # a stop string ended it, the engine does not know

    async def _merged(self) -> AsyncIterator[Piece]:
        arrived: asyncio.Queue[Piece | Exception] = asyncio.Queue()

        async def read(choice: Choice) -> None:
            try:
                async for piece in self._pieces_of(choice):
                    arrived.put_nowait(piece)
            except Exception as error:  # raised where the pieces are awaited
                arrived.put_nowait(error)

        tasks = [asyncio.create_task(read(choice)) for choice in self.choices]
        num_open = len(tasks)
        try:
            while num_open:
                item = await arrived.get()
                if isinstance(item, Exception):
                    raise item
                num_open -= item.finish is not None
                yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def usage(self) -> Usage:
        """So far; final once every choice has ended."""
        first_of_each = self.choices[:: self.num_choices_per_prompt]
        return Usage(
            self.num_prompt_tokens,
            sum(choice.num_tokens for choice in self.choices),
            sum(choice.num_cached_tokens for choice in first_of_each),
        )

    def close(self) -> None:
        """Give everything back; the second time does nothing."""
        self.resources.close()
