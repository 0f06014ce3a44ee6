"""What the page's panel shows: neuron activity and speed, a few times a second. Knows no HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from ..engine.messages import Activity, StepStats
from .service import Service

SECONDS = 0.25


class ActivityFeed:
    """Adds steps up; whoever watches sees the difference to what they saw last."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._num_steps = self._num_tokens = self._num_measured = 0
        self._mode = ""
        self._activity: Activity | None = None
        service.engine.on_step.append(self._step)

    def _step(self, stats: StepStats) -> None:
        self._num_steps += bool(stats.ffn_mode)
        self._num_tokens += stats.num_decode_tokens
        self._mode = stats.ffn_mode or self._mode
        if stats.activity is not None:
            self._activity = stats.activity
            self._num_measured += 1

    async def events(self) -> AsyncIterator[str]:
        """JSON objects until the server shuts down; layers only where they are news."""
        seen, at = (self._num_steps, self._num_tokens, self._num_measured), time.monotonic()
        while not self._service.draining and self._service.engine.dead is None:
            await asyncio.sleep(SECONDS)
            now = time.monotonic()
            steps, tokens, measured = self._num_steps, self._num_tokens, self._num_measured
            stats, activity = self._service.engine.stats, self._activity
            yield json.dumps(
                {
                    "steps": steps - seen[0],
                    "tokens_per_second": round((tokens - seen[1]) / (now - at), 1),
                    "running": stats.num_running,
                    "waiting": stats.num_waiting,
                    "kv_cache_usage": round(stats.num_pages_held / max(1, stats.num_pages), 4),
                    "ffn_mode": self._mode,
                    "active": None if activity is None else _rounded(activity.active),
                    "union": None if activity is None else _rounded(activity.union),
                    "measured": measured - seen[2],
                }
            )
            seen, at = (steps, tokens, measured), now


def _rounded(fractions: list[float]) -> list[float]:
    return [round(fraction, 4) for fraction in fractions]
