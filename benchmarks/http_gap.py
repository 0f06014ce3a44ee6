"""What serving adds to a step: one stream through the whole server, over the bare decode step.

    python benchmarks/http_gap.py                                    # turbosparse-mistral-7b
    python benchmarks/http_gap.py --synthetic turbosparse-mistral-16m --device cpu --dtype float32

Same machine, same synthetic model, one after the other; the step is at the stream's mean length.
Tokens a second of the stream are counted from its first token, so the prompt is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from urllib.request import urlopen

import torch
from decode import Step
from machine import facts

from turbosparse.models.batch import FfnMode
from turbosparse.models.load import DTYPES, load
from turbosparse.models.machine import processor
from turbosparse.models.tools import shapes
from turbosparse.server.commands.bench import Load, Target, run_load, served


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--synthetic", choices=shapes.NAMES, default="turbosparse-mistral-7b")
    parser.add_argument("--layers", type=int, help="default: the model's")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--prompt-tokens", type=int, default=384)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="streams; the median counts")
    parser.add_argument("--must", type=float, help="lowest share of the bare step's speed")
    parser.add_argument("--commit")
    return parser.parse_args()


def streamed(args: argparse.Namespace) -> tuple[float, FfnMode]:
    """Tokens a second of one stream, and the FFN mode that the server takes for it."""
    flags = ["--synthetic", args.synthetic, "--device", args.device, "--dtype", args.dtype]
    if args.layers:
        flags += ["--synthetic-layers", str(args.layers)]
    with served(None, flags) as url:
        loads = [
            asyncio.run(run_load(Target(url), 1, 1, args.max_tokens, args.prompt_tokens))
            for _ in range(1 + args.rounds)
        ]
        with urlopen(f"{url}/health") as answer:
            modes: dict[str, str] = json.load(answer)["engine"]["ffn_modes"]
    speed = statistics.median(speed_of(load) for load in loads[1:])  # the first one warms up
    return speed, FfnMode(modes[min(modes, key=int)])


def speed_of(load: Load) -> float:
    """Tokens a second after the first one."""
    return (load.num_tokens - 1) / sum(load.between)


def stepped(args: argparse.Namespace, mode: FfnMode) -> float:
    """Tokens a second of the bare decode step."""
    context = args.prompt_tokens + args.max_tokens // 2
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        shapes.describe_named(Path(folder), args.synthetic, layers=args.layers)
        decoder = load(Path(folder), torch.device(args.device), DTYPES[args.dtype]).decoder
        return 1 / Step(decoder, 1, context).seconds(mode)


def main() -> None:
    args = arguments()
    name = torch.cuda.get_device_name() if args.device != "cpu" else processor()
    for fact, value in facts(name, args.commit).items():
        print(f"{fact}: {value}")
    stream, mode = streamed(args)
    bare = stepped(args, mode)
    print(f"{args.synthetic}, synthetic, {args.dtype}, mode {mode}")
    print(f"one stream over HTTP {stream:.1f} tok/s, bare step {bare:.1f}: {stream / bare:.1%}")
    if args.must is not None and stream / bare < args.must:
        raise SystemExit(f"less than {args.must:.1%}")


if __name__ == "__main__":
    main()
