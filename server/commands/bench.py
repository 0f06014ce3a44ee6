"""`turbosparse bench`: streams of random prompts over HTTP, and what their clients saw.

Each of the `concurrency` clients sends its next request when the last one has ended. No two prompts
are alike.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ...models.progress import track
from .. import flags
from ..flags import SettingsError, flag

TURBOSPARSE = [sys.executable, "-m", f"{__name__.removesuffix('.commands.bench')}"]
LOWEST_ID, HIGHEST_ID = 10, 4000  # of random prompts: every vocabulary has these
seeds = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFlags:
    """What to measure."""

    model: str | None = flag(
        None, "a checkpoint to serve and measure; default: the bundled model", positional=True
    )
    url: str | None = flag(None, "measure a server that runs already, instead")
    api_key: tuple[str, ...] = flag((), "its key", secret=True)
    serve_flags: str = flag("", "flags of the server that is started, in one string")
    concurrency: tuple[int, ...] = flag((1, 8, 32), "numbers of clients at once", low=1)
    requests: int = flag(4, "that each client sends", low=1)
    prompt_tokens: int = flag(35, "of each request", low=1)
    max_tokens: int = flag(64, "that each answer has", low=1)
    json: str | None = flag(None, "write the measurements there")


@dataclass
class Load:
    """What one level of concurrency measured; times in seconds.

    `between` are gaps between two writes that one client read: a write may carry several tokens.
    """

    concurrency: int
    num_tokens: int = 0
    num_complete: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list[float])
    between: list[float] = field(default_factory=list[float])
    errors: list[str] = field(default_factory=list[str])

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """Where the server is, and the key that it wants."""

    url: str
    key: str = ""

    def head(self, num_bytes: int) -> bytes:
        """A request's line and headers."""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        return (
            f"POST /v1/completions HTTP/1.1\r\nHost: {urlsplit(self.url).netloc}\r\n{key}"
            "Connection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {num_bytes}\r\n\r\n"
        ).encode()


async def stream_once(target: Target, body: dict[str, object], load: Load) -> None:
    """One request over its own socket; the time of every write's arrival.

    Written on sockets because the client shares its cores with the server: an HTTP library costs
    more per event than the server does.
    """
    where = urlsplit(target.url)
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1 << 20)
    except OSError as error:
        load.errors.append(str(error))
        return
    payload = json.dumps(body).encode()
    last = time.perf_counter()
    writer.write(target.head(len(payload)) + payload)
    status = await reader.readline()
    if b" 200 " not in status:
        load.errors.append(f"{status!r} {await reader.read()!r}")
        writer.close()
        return
    num_events, rest, usage, done = 0, b"", b"", False
    while data := await reader.read(1 << 16):
        now = time.perf_counter()
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        # an event may carry several tokens: usage, not events, counts them
        num_new = 0
        for line in lines:
            if line.startswith(b'data: {"id"'):
                if b'"choices":[]' in line:
                    usage = line
                else:
                    num_new += 1
            done = done or line.startswith(b"data: [DONE]")
        if num_new:
            (load.between if num_events else load.first).append(now - last)
            num_events += num_new
            last = now
    writer.close()
    if not done or not usage:
        load.errors.append("a stream ended before [DONE], or without usage")
        return
    num_tokens = json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]
    load.num_tokens += num_tokens
    load.num_complete += num_tokens == body["max_tokens"]


async def run_load(
    target: Target, concurrency: int, num_requests: int, max_tokens: int, prompt_tokens: int
) -> Load:
    """`num_requests` requests by `concurrency` clients."""
    load, rng = Load(concurrency), random.Random(next(seeds))
    body: dict[str, object] = {
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    prompts = [
        [rng.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(prompt_tokens)]
        for _ in range(num_requests)
    ]

    async def client() -> None:
        while prompts:
            await stream_once(target, body | {"prompt": prompts.pop()}, load)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    load.seconds = time.perf_counter() - started
    return load


@contextmanager
def served(model: str | None, arguments: list[str]) -> Generator[str]:
    """A server for this model on a free port; its URL once it answers. Raises SettingsError."""
    command = [*TURBOSPARSE, "serve", *([model] if model else []), "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = (re.search(r"url +(http\S+)", line) for line in process.stdout)
        url = next((match[1] for match in found if match), None)
        if url is None:
            raise SettingsError(f"the server of {model or arguments} did not start")
        try:
            yield url
        finally:
            process.terminate()


def quantile(values: list[float], share: float) -> float:
    """In milliseconds; of fewer than two values there is none."""
    if len(values) < 2:
        return float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1] * 1e3


HEADINGS = ("tok/s", "complete", "errors", "TTFT p50", "p99", "gap p50", "p99")


def heading() -> str:
    return f"{'':>12} {'conc.':>5}" + "".join(f"{name:>10}" for name in HEADINGS)


def row(name: str, load: Load) -> str:
    """A line of the table below `heading`; times in milliseconds."""
    times = [quantile(v, q) for v in (load.first, load.between) for q in (0.5, 0.99)]
    counts = f"{load.tokens_per_second:>10.0f}{load.num_complete:>10}{len(load.errors):>10}"
    return f"{name:>12} {load.concurrency:>5}{counts}" + "".join(f"{t:>10.2f}" for t in times)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_arguments(parser, BenchFlags)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; returns 1 where a request failed."""
    chosen = flags.read(BenchFlags, vars(arguments))
    if chosen.url is not None and (chosen.model is not None or chosen.serve_flags):
        raise SettingsError("--url measures a server that runs: no model and no --serve-flags")
    if chosen.url is not None:
        loads = _measure(chosen, Target(chosen.url, *chosen.api_key[:1]))
    else:
        with served(chosen.model, chosen.serve_flags.split()) as url:
            loads = _measure(chosen, Target(url, *chosen.api_key[:1]))
    print(heading())
    for load in loads:
        print(row("", load))
    errors = [error for load in loads for error in load.errors]
    for error in errors[:5]:
        print(f"failed: {error}", file=sys.stderr)
    if chosen.json is not None:
        Path(chosen.json).write_text(json.dumps([vars(load) for load in loads]))
    return 1 if errors else 0


def _measure(chosen: BenchFlags, target: Target) -> list[Load]:
    sizes = chosen.max_tokens, chosen.prompt_tokens
    asyncio.run(run_load(target, 2, 2, *sizes))  # warm up
    loads: list[Load] = []
    for concurrency in track(chosen.concurrency, "Measuring"):
        num_requests = concurrency * chosen.requests
        loads.append(asyncio.run(run_load(target, concurrency, num_requests, *sizes)))
    return loads
