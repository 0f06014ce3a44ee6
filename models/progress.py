"""A bar for what takes long, where somebody looks at a terminal. Knows no model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def bar(description: str, total: int) -> Generator[Callable[[], None]]:
    """A bar on stderr that is gone when it is full; a call moves it by one. None into a file."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


def track(items: Collection[T], description: str, *, enabled: bool = True) -> Iterator[T]:
    """Each of them, with a bar that says how far it is."""
    if not enabled:
        yield from items
        return
    with bar(description, len(items)) as advance:
        for item in items:
            yield item
            advance()
