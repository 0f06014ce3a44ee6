"""How many CPU threads a step takes: all of them, or fewer while other processes have their cores.

A kernel ends with its last thread. A thread whose core was given to another process comes back
milliseconds later, so two threads on one and a half cores are slower than one: by a little beside
the API process, tenfold beside a busy neighbour. Nothing that is computed depends on the number.
Knows clocks; knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

WINDOW = 0.5  # seconds of work that are looked at together
RETRY = 1.0, 15.0  # seconds until all threads are tried again: at first, and at most
TOLERATED = 0.5  # cores that may be missing; below it more threads still gain


class Crew:
    """Sets the number of threads, from what share of their time the last ones have got."""

    def __init__(
        self,
        most: int,
        set_num_threads: Callable[[int], None],
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.most = most
        self._apply = set_num_threads
        self._wall, self._cpu = wall, cpu
        self._wall_seconds = self._cpu_seconds = 0.0
        self._retry_at, self._pause = 0.0, RETRY[0]
        self._set(most)

    @contextmanager
    def at_work(self) -> Generator[None]:
        """Around a step; its threads spin between two kernels, so they work or wait for a core."""
        if self.most == 1:
            yield
            return
        wall, cpu = self._wall(), self._cpu()
        yield
        now = self._wall()
        self._wall_seconds += now - wall
        self._cpu_seconds += self._cpu() - cpu
        if self._wall_seconds >= WINDOW:
            self._choose(now)

    def _choose(self, now: float) -> None:
        num_cores = self._cpu_seconds / self._wall_seconds
        self._wall_seconds = self._cpu_seconds = 0.0
        if self.num_threads > 1 and num_cores < self.num_threads - TOLERATED:
            self._set(max(1, int(num_cores)))
            self._retry_at = now + self._pause
            self._pause = min(2 * self._pause, RETRY[1])
        elif self.num_threads == self.most:
            self._pause = RETRY[0]
        elif now >= self._retry_at:
            self._set(self.most)

    def _set(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._apply(num_threads)
