"""Whether a token can be made: a step was computed a moment ago, or one is for the asking.

A step of a long prompt brings no token and is proof as well: a probe would wait behind it.
"""

from __future__ import annotations

import asyncio
import itertools
import time

from ..engine.client import EngineClient, OutputStream
from ..engine.errors import EngineDeadError
from ..engine.messages import Output
from ..engine.request import SamplingParams

RECENT_SECONDS = 5.0  # a step of this age is proof enough
PROBE_SECONDS = 5.0
PROMPT = [0]


class Readiness:
    """Asks one engine; several who ask at once share the answer."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._asking = asyncio.Lock()
        self._ids = map("ready-{}".format, itertools.count())

    async def problem(self) -> str | None:
        """Why no token can be made; None: one can."""
        async with self._asking:
            if self._engine.dead is not None:
                return self._engine.dead
            if time.monotonic() - self._engine.computed_at < RECENT_SECONDS:
                return None
            return await self._probe()

    async def _probe(self) -> str | None:
        id = next(self._ids)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                stream = self._engine.submit(id, PROMPT, SamplingParams(1, temperature=0.0))
                output = await _last(stream)
        except TimeoutError:
            return f"no token within {PROBE_SECONDS:g} s"
        except EngineDeadError as error:
            return str(error)
        finally:
            self._engine.abort([id])
        return output.error


async def _last(stream: OutputStream) -> Output:
    while True:
        output = (await stream.take())[-1]
        if output.finish is not None:
            return output
