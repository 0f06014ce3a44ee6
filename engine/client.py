"""The API process's end of the pipe: starts the engine, fans its outputs out, notices its death."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue

from .config import EngineConfig
from .errors import EngineDeadError, EngineStartError
from .messages import (
    Abort,
    EngineInfo,
    FromEngine,
    Output,
    ResetPrefixCache,
    StartFailed,
    StepOutput,
    StepStats,
    Submit,
    ToEngine,
)
from .process import DEFAULT_RUNNER, STACKS, run_engine
from .request import SamplingParams

CLOSE_SECONDS = 5.0
STACKS_SECONDS = 0.5  # for a stuck engine to print where it is


class OutputStream:
    """What the engine has brought one request and nobody has taken yet."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._pending: list[Output] = []
        self._arrived = asyncio.Event()
        self._failure: Exception | None = None

    async def take(self) -> list[Output]:
        """All that has piled up, at least one; raises EngineDeadError, or what `fail` said."""
        if not self._pending:
            if self._failure is None:
                await self._arrived.wait()
            if not self._pending:
                raise self._failure or EngineDeadError("the engine stopped")
        taken, self._pending = self._pending, []
        self._arrived.clear()
        return taken

    def put(self, output: Output) -> None:
        self._pending.append(output)
        self._arrived.set()

    def fail(self, failure: Exception) -> None:
        """Nothing more will come: who takes after the last output gets this raised."""
        self._failure = failure
        self._arrived.set()


class EngineClient:
    """One engine process. `start` it, `submit` to it, `close` it."""

    def __init__(self, process: BaseProcess, connection: Connection, info: EngineInfo) -> None:
        self.info = info
        self.stats = StepStats(num_pages=info.num_pages)
        self.on_step: list[Callable[[StepStats], None]] = []
        self._process = process
        self._connection = connection
        self._streams: dict[str, OutputStream] = {}
        self._dead: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closing = False
        self._heard_at = time.monotonic()
        self.computed_at = float("-inf")  # time.monotonic() of the last step that did not fail
        # The pipe may be full while the engine computes: a thread of its own blocks on it, never
        # the event loop.
        self._outbox: SimpleQueue[ToEngine | None] = SimpleQueue()
        self._sender = threading.Thread(target=self._send, name="engine-sender", daemon=True)

    @classmethod
    async def start(cls, config: EngineConfig, build: str = DEFAULT_RUNNER) -> EngineClient:
        """Spawn the engine and wait until it can make a token; raises EngineStartError.

        Takes as long as loading does; a child that dies meanwhile is noticed at once.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_engine, args=(theirs, config, build), name="turbosparse-engine"
        )
        process.start()
        theirs.close()  # else its EOF would never reach us
        try:
            first = await asyncio.to_thread(_first_message, process, ours)
        except BaseException:
            process.kill()
            process.join()
            ours.close()
            raise
        client = cls(process, ours, first)
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), client._read)
        loop.add_reader(process.sentinel, client._ended)
        # uvloop makes what it watches non-blocking. A full pipe must make the sender wait, and half
        # a message the reader, which the engine is writing the rest of.
        os.set_blocking(ours.fileno(), True)
        client._sender.start()
        return client

    @property
    def dead(self) -> str | None:
        """Why the engine is gone; None while it lives."""
        return self._dead.result() if self._dead.done() else None

    async def wait_dead(self) -> str:
        return await asyncio.shield(self._dead)

    @property
    def seconds_silent(self) -> float:
        """How long requests have been open without a word from the engine."""
        return time.monotonic() - self._heard_at if self._streams else 0.0

    async def watch(self, step_timeout: float) -> None:
        """End the engine when a step takes longer than this: a stuck device would hang everyone."""
        while self.dead is None:
            await asyncio.sleep(min(1.0, step_timeout / 4))
            if self.seconds_silent > step_timeout:
                self._read()  # it may be us who did not listen
            if self.seconds_silent > step_timeout:
                await self._kill(f"a step has taken more than {step_timeout:g} s")

    async def _kill(self, reason: str) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, STACKS)
        await asyncio.sleep(STACKS_SECONDS)
        self._die(reason)
        self._process.kill()

    def submit(self, id: str, prompt: list[int], sampling: SamplingParams) -> OutputStream:
        """Hand a request over; raises EngineDeadError. `id` must not be in use."""
        if self.dead is not None:
            raise EngineDeadError(self.dead)
        assert id not in self._streams, id
        if not self._streams:
            self._heard_at = time.monotonic()
        stream = self._streams[id] = OutputStream(id)
        self._outbox.put(Submit(id, prompt, sampling))
        return stream

    def abort(self, ids: list[str]) -> None:
        """Forget these requests; ids that have ended, and a dead engine, are no error."""
        live = [id for id in ids if self._streams.pop(id, None) is not None]
        if live and self.dead is None:
            self._outbox.put(Abort(live))

    def reset_prefix_cache(self) -> None:
        """Make the engine forget every prefix before it takes the next request."""
        if self.dead is not None:
            raise EngineDeadError(self.dead)
        self._outbox.put(ResetPrefixCache())

    async def close(self) -> None:
        """Close the pipe, on which the engine ends itself; kill it if it does not."""
        self._closing = True
        self._outbox.put(None)
        self._die("the server is shutting down")
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        self._sender.join(CLOSE_SECONDS)
        self._connection.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _send(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except BlockingIOError:
                raise  # not the engine's end, but a pipe that should have made us wait
            except (OSError, ValueError):
                return  # the engine is gone; its sentinel tells

    def _read(self) -> None:
        """Fan out what has arrived: one message a step, each request's outputs to its stream."""
        try:
            while self._connection.poll(0):
                message: FromEngine = self._connection.recv()
                assert isinstance(message, StepOutput), message
                self._deliver(message)
        except (EOFError, OSError):
            self._ended()

    def _deliver(self, message: StepOutput) -> None:
        self.stats = message.stats
        self._heard_at = time.monotonic()
        if message.stats.ffn_mode:
            self.computed_at = self._heard_at
        for output in message.outputs:
            stream = self._streams.get(output.id)
            if stream is not None:  # else aborted since
                stream.put(output)
                if output.finish is not None:
                    del self._streams[output.id]
        for listener in self.on_step:
            listener(message.stats)

    def _ended(self) -> None:
        self._process.join(CLOSE_SECONDS)
        if not self._closing:
            self._die(f"the engine process ended with exit code {self._process.exitcode}")

    def _die(self, reason: str) -> None:
        if self._dead.done():
            return
        self._dead.set_result(reason)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._connection.fileno())
        loop.remove_reader(self._process.sentinel)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineDeadError(reason))


def _first_message(process: BaseProcess, connection: Connection) -> EngineInfo:
    """Wait for the engine's first word, or for its death."""
    wait([connection, process.sentinel])
    message: object = None
    with suppress(EOFError):
        message = connection.recv() if connection.poll(0) else None
    if isinstance(message, EngineInfo):
        return message
    process.join(CLOSE_SECONDS)
    if isinstance(message, StartFailed):
        raise EngineStartError(message.message)
    raise EngineStartError(f"the engine process ended at start with exit code {process.exitcode}")
