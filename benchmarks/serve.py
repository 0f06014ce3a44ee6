"""Speed over HTTP, as a client sees it: tokens a second, time to first token, inter-token latency.

    python benchmarks/serve.py                    # a random dense Mistral and its TurboSparse twin
    python benchmarks/serve.py models/tiny        # any checkpoints
    python benchmarks/serve.py --url http://127.0.0.1:8000

Starts a server for each model and loads them in turn on loopback: each of the `concurrency` clients
sends its next request when the last one has ended. Rounds alternate
between the models, and the best round counts: another process can only slow one down.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from machine import processor

TURBOSPARSE = [sys.executable, "-m", "turbosparse.server"]
START_SECONDS = 300
PAIR = {"dense": "mistral", "twin": "turbosparse-mistral"}
seeds = itertools.count(1)


@dataclass
class Load:
    """What one level of concurrency measured; times in seconds."""

    concurrency: int
    num_tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds


async def stream_once(url: str, body: dict[str, object], load: Load) -> None:
    """One request over its own socket; the time of every token's arrival.

    Written on sockets because the client shares two cores with the server: an HTTP library costs
    more per event than the server does.
    """
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1 << 20)
    payload = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    last = time.perf_counter()
    writer.write(head.encode() + payload)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r} {await reader.read()!r}")
    num_events, rest, usage = 0, b"", b""
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
        if num_new:
            (load.between if num_events else load.first).append(now - last)
            num_events += num_new
            last = now
    writer.close()
    load.num_tokens += json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"]


async def run_load(
    url: str, concurrency: int, num_requests: int, body: dict[str, object], prompt_tokens: int
) -> Load:
    """`num_requests` requests by `concurrency` clients, no two prompts alike."""
    load, rng = Load(concurrency), random.Random(next(seeds))
    prompts = [[rng.randrange(10, 4000) for _ in range(prompt_tokens)] for _ in range(num_requests)]

    async def client() -> None:
        while prompts:
            await stream_once(url, body | {"prompt": prompts.pop()}, load)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    load.seconds = time.perf_counter() - started
    return load


@contextmanager
def served(model: str | None, flags: list[str]) -> Iterator[str]:
    """A server for this model, or the one in the flags, on a free port; its URL once it answers."""
    command = [*TURBOSPARSE, "serve", *([model] if model else []), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = None
        for line in process.stdout:
            if found := re.search(r"url +(http\S+)", line):
                url = found[1]
                break
        if url is None:
            raise SystemExit(f"the server of {model or flags} did not start")
        yield url
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def quantile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1] * 1e3


def row(name: str, load: Load) -> str:
    times = [quantile(v, q) for v in (load.first, load.between) for q in (0.5, 0.99)]
    return f"{name:>12} {load.concurrency:>5} {load.tokens_per_second:>9.0f}" + "".join(
        f"{t:>10.2f}" for t in times
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="checkpoints; default: a random pair")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=35)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4, help="a client and round, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", default="", help="for turbosparse serve, in one string")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    with ExitStack() as stack:
        if arguments.url:
            urls = {"server": arguments.url}
        else:
            models = {Path(m).name: m for m in arguments.models}
            if not models:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                for name, family in PAIR.items():
                    models[name] = str(folder / name)
                    make = [*TURBOSPARSE, "make-model", models[name], "--family", family]
                    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
            flags = arguments.flags.split()
            urls = {n: stack.enter_context(served(m, flags)) for n, m in models.items()}
        best = measure(arguments, urls)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; times in ms")
    print(
        f"{'':>12} {'conc.':>5} {'tok/s':>9}{'TTFT p50':>10}{'p99':>10}{'ITL p50':>10}{'p99':>10}"
    )
    for (name, _), load in best.items():
        print(row(name, load))
    if arguments.json:
        results = [{"model": n, **asdict(load)} for (n, _), load in best.items()]
        arguments.json.write_text(json.dumps(results))


def measure(arguments: argparse.Namespace, urls: dict[str, str]) -> dict[tuple[str, int], Load]:
    body: dict[str, object] = {
        "max_tokens": arguments.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    best: dict[tuple[str, int], Load] = {}
    for url in urls.values():  # warm up
        asyncio.run(run_load(url, 2, 2, body, arguments.prompt_tokens))
    for concurrency in arguments.concurrency:
        num_requests = max(8, concurrency * arguments.requests)
        for _ in range(arguments.rounds):
            for name, url in urls.items():
                load = asyncio.run(
                    run_load(url, concurrency, num_requests, body, arguments.prompt_tokens)
                )
                known = best.get((name, concurrency))
                if known is None or load.tokens_per_second > known.tokens_per_second:
                    best[name, concurrency] = load
    return best


if __name__ == "__main__":
    main()
