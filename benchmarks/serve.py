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
import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from turbosparse.models.machine import processor
from turbosparse.server.commands.bench import (
    TURBOSPARSE,
    Load,
    Target,
    heading,
    row,
    run_load,
    served,
)

PAIR = {"dense": "mistral", "twin": "turbosparse-mistral"}


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
    print(heading())
    for (name, _), load in best.items():
        print(row(name, load))
    if arguments.json:
        results = [{"model": n, **asdict(load)} for (n, _), load in best.items()]
        arguments.json.write_text(json.dumps(results))


def measure(arguments: argparse.Namespace, urls: dict[str, str]) -> dict[tuple[str, int], Load]:
    sizes = arguments.max_tokens, arguments.prompt_tokens
    best: dict[tuple[str, int], Load] = {}
    for url in urls.values():  # warm up
        asyncio.run(run_load(Target(url), 2, 2, *sizes))
    for concurrency in arguments.concurrency:
        num_requests = max(8, concurrency * arguments.requests)
        for _ in range(arguments.rounds):
            for name, url in urls.items():
                load = asyncio.run(run_load(Target(url), concurrency, num_requests, *sizes))
                if load.errors:
                    raise SystemExit(f"{name}: {len(load.errors)} failed: {load.errors[0]}")
                known = best.get((name, concurrency))
                if known is None or load.tokens_per_second > known.tokens_per_second:
                    best[name, concurrency] = load
    return best


if __name__ == "__main__":
    main()
