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
from .errors import ApiError, EngineDead, GenerationFailed, OutOfMemory
from .metrics import Metrics
from .tool_parser import Call, CallDelta, ToolStream

Logprobs = list[tuple[int, TokenLogprobs]]  # of token ids, in order


@dataclass(slots=True)
class Piece:
    """What one choice has to show since the last piece; `finish` on its last one."""

    index: int
    text: str
    logprobs: Logprobs  # of the tokens read
    prompt_logprobs: list[TokenLogprobs]  # of the prompt's tokens from the second on
    calls: list[CallDelta]
    finish: str | None = None


@dataclass(slots=True)
class Answer:
    """One choice as a whole."""

    text: str = ""
    logprobs: Logprobs = field(default_factory=list[tuple[int, TokenLogprobs]])
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    calls: list[Call] = field(default_factory=list[Call])
    call_ids: list[str] = field(default_factory=list[str])
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.logprobs += piece.logprobs
        self.prompt_logprobs += piece.prompt_logprobs
        self.finish = piece.finish
        for delta in piece.calls:
            if delta.id is not None and delta.name is not None:
                self.calls.append(Call(delta.name, delta.arguments))
                self.call_ids.append(delta.id)
            else:
                call = self.calls[delta.index]
                self.calls[delta.index] = Call(call.name, call.arguments + delta.arguments)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request took, as the client is told; `active_fraction` is None for who did not
    ask."""

    num_prompt: int
    num_completion: int
    num_cached: int
    active_fraction: float | None = None


class Choice:
    """One of the answers to one prompt. With `echo_only` it is only the prompt that is wanted: the
    one token that the engine samples is dropped."""

    def __init__(
        self,
        index: int,
        prompt: list[int],
        stream: OutputStream,
        detokenizer: Detokenizer,
        tools: ToolStream | None,
        metrics: Metrics,
        started: float,
        *,
        echo_only: bool = False,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.stream = stream
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.active_fraction: float | None = None
        self.finish: str | None = None
        self.first_token_at: float | None = None
        self._detokenizer = detokenizer
        self._tools = tools
        self._metrics = metrics
        self._last_read = started
        self._echo_only = echo_only

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._detokenizer.matched

    async def next(self) -> Piece:
        """Wait for tokens and read all there are; raises ApiError, EngineDeadError."""
        try:
            outputs = await self.stream.take()
        except ApiError:
            self.finish = "error"
            raise
        num_before = self.num_tokens
        piece = self._read(outputs)
        self._observe(num_before)
        return piece

    def _read(self, outputs: list[Output]) -> Piece:
        piece = Piece(self.index, "", [], [], [])
        finish: str | None = None
        for output in outputs:
            self.num_cached_tokens = output.num_cached_tokens
            piece.prompt_logprobs += output.prompt_logprobs or ()
            if output.finish is FinishReason.ERROR:
                self.finish = "error"
                failure = OutOfMemory if output.out_of_memory else GenerationFailed
                raise failure(output.error or "the engine gave no reason")
            if output.token_id is not None and not self._echo_only:
                self.num_tokens += 1
                if output.finish is not FinishReason.STOP:  # a stop token is not text
                    piece.text += self._detokenizer.add(output.token_id)
                    if output.logprobs is not None:
                        piece.logprobs.append((output.token_id, output.logprobs))
            if output.finish is not None:
                finish = "length" if self._echo_only else output.finish.value
                self.active_fraction = output.active_fraction
            if self._detokenizer.stopped:
                break
        if finish is not None:
            piece.text += self._detokenizer.finish()
        finish = "stop" if self._detokenizer.stopped else finish
        if self._tools is not None:
            finish = self._divide(piece, self._tools, finish)
        piece.finish = self.finish = finish
        return piece

    def _divide(self, piece: Piece, tools: ToolStream, finish: str | None) -> str | None:
        """Tell a piece's calls from its text; how the answer ends, if it does."""
        piece.text, piece.calls = tools.add(piece.text, is_whole=finish is not None)
        if tools.is_done or (finish == "stop" and tools.num_calls):
            return "tool_calls"
        return finish

    def _observe(self, num_before: int) -> None:
        now = time.perf_counter()
        num_new, waited = self.num_tokens - num_before, now - self._last_read
        self._last_read = now
        if num_before:
            self._metrics.inter_token(waited, num_new)
        elif num_new:
            self._metrics.first_token(waited)
            self.first_token_at = now


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
        self.engine.abort([choice.stream.id])  # its text ended it, the engine does not know

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

    async def answers(self) -> list[Answer]:
        """Every choice, once all have ended; raises ApiError."""
        answers = [Answer() for _ in self.choices]
        async for piece in self.pieces():
            answers[piece.index].add(piece)
        return answers

    def usage(self) -> Usage:
        """So far; final once every choice has ended."""
        found = (choice.active_fraction for choice in self.choices)
        fractions = [fraction for fraction in found if fraction is not None]
        first_of_each = self.choices[:: self.num_choices_per_prompt]
        return Usage(
            self.num_prompt_tokens,
            sum(choice.num_tokens for choice in self.choices),
            sum(choice.num_cached_tokens for choice in first_of_each),
            sum(fractions) / len(fractions) if fractions else None,
        )

    def close(self) -> None:
        """Give everything back; the second time does nothing."""
        self.resources.close()
