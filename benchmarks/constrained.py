"""What answers that follow a grammar cost the free ones beside them: 8 streams that are all free,
then 4 free and 4 constrained, in turns, over HTTP.

    python benchmarks/constrained.py                     # the bundled model

The gap is the time between two writes of a free stream; every stream runs to its last token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from itertools import pairwise

import httpx
from machine import facts

from turbosparse.models.machine import processor
from turbosparse.server.commands.bench import served

STREAMS = 8
# Any text, so that what is said, and how many neurons that takes, is not what is compared.
GRAMMAR = {"guided_regex": r"(.|\n){2000,}"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: the bundled one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--commit")
    return parser.parse_args()


async def gaps(client: httpx.AsyncClient, seed: int, max_tokens: int, grammar: bool) -> list[float]:
    """Seconds between the writes of one stream, after the first."""
    body: dict[str, object] = {"prompt": [100 + seed, 7, 9], "stream": True, "seed": seed}
    body |= GRAMMAR if grammar else {"ignore_eos": True}
    times: list[float] = []
    async with client.stream(
        "POST", "/v1/completions", json=body | {"max_tokens": max_tokens}
    ) as r:
        r.raise_for_status()
        async for _ in r.aiter_raw():
            times.append(time.perf_counter())
    return [b - a for a, b in pairwise(times)]


async def measure(url: str, num_constrained: int, max_tokens: int) -> list[float]:
    """The gaps of the free streams among STREAMS."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        streams = [gaps(client, i, max_tokens, i < num_constrained) for i in range(STREAMS)]
        found = await asyncio.gather(*streams)
    return [gap for stream in found[num_constrained:] for gap in stream]


def main() -> None:
    args = arguments()
    for fact, value in facts(processor(), args.commit).items():
        print(f"{fact}: {value}")
    medians: dict[int, list[float]] = {0: [], STREAMS // 2: []}
    with served(args.model, []) as url:
        for turn in range(1 + args.rounds):
            for constrained, found in medians.items():
                gap = asyncio.run(measure(url, constrained, args.max_tokens))
                if turn:  # the first one warms up
                    found.append(statistics.median(gap))
    for constrained, found in medians.items():
        each = " ".join(f"{gap * 1e3:.2f}" for gap in found)
        print(
            f"{STREAMS - constrained} free, {constrained} constrained: median gap of a free stream "
            f"{statistics.median(found) * 1e3:.2f} ms (rounds: {each})"
        )


if __name__ == "__main__":
    main()
