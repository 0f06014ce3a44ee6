"""One log line every ten seconds while something runs: what an operator asks first."""

from __future__ import annotations

import asyncio
import logging

from ..engine.client import EngineClient
from ..engine.messages import StepStats

logger = logging.getLogger(__name__)
SECONDS = 10.0


class Summary:
    """Adds steps up until it is asked for a line."""

    def __init__(self) -> None:
        self._reset()
        self._active: float | None = None

    def _reset(self) -> None:
        self._num_steps = self._num_prompt = self._num_generated = 0
        self._num_queries = self._num_hits = 0
        self._last: StepStats | None = None

    def step(self, stats: StepStats) -> None:
        """Listens to the engine."""
        self._num_steps += bool(stats.ffn_mode)
        self._num_prompt += stats.num_prefill_tokens
        self._num_generated += stats.num_decode_tokens
        self._num_queries += stats.num_prefix_queries
        self._num_hits += stats.num_prefix_hits
        if stats.activity is not None:
            self._active = stats.activity.active_fraction
        self._last = stats

    def line(self, seconds: float) -> str | None:
        """What happened in this time, forgotten with the asking; None where nothing did."""
        stats = self._last
        if stats is None or not self._num_steps:
            return None
        parts = [
            f"prompt {self._num_prompt / seconds:.1f} tok/s",
            f"generation {self._num_generated / seconds:.1f} tok/s",
            f"{stats.num_running} running",
            f"{stats.num_waiting} waiting",
            f"K/V {stats.num_pages_held / max(1, stats.num_pages):.1%}",
            f"prefix hits {self._num_hits / max(1, self._num_queries):.1%}",
            f"{self._num_steps / seconds:.1f} steps/s, {stats.ffn_mode}",
        ]
        if self._active is not None:
            parts.append(f"{self._active:.1%} of neurons active")
        self._reset()
        return ", ".join(parts)


async def summarize(engine: EngineClient) -> None:
    """Log until cancelled."""
    summary = Summary()
    engine.on_step.append(summary.step)
    while True:
        await asyncio.sleep(SECONDS)
        line = summary.line(SECONDS)
        if line is not None:
            logger.info("%s", line)
