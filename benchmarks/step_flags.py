"""The flags of benchmarks/step.py, and what its paths are called."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossover import CONTEXTS
from decode import PAGE_SIZE

from turbosparse.models.batch import FfnMode
from turbosparse.models.load import DTYPES
from turbosparse.models.sparsity.blocks import MIN_BUDGET, AttentionMode
from turbosparse.models.tools import shapes

MODES = {"token": FfnMode.TOKEN, "union": FfnMode.UNION, "masked": FfnMode.DENSE}
NAMES = {mode: path for path, mode in MODES.items()}
CHOSEN, ENGINE, DENSE, FLOAT8 = "chosen", "engine", "dense", "float8"
RIVALS = ("generate", "continuous")
BASELINES = {  # sparse model -> the ordinary one of its shape
    "turbosparse-mistral-7b": "mistral-7b",
    "turbosparse-mixtral-47b": "mixtral-8x7b",
    "bamboo-7b": "mistral-7b",
    "turbosparse-mistral-16m": "mistral-16m",
    "bamboo-16m": "mistral-16m",
    "turbosparse-mixtral-30m": "mixtral-30m",
}


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=BASELINES, default="turbosparse-mistral-7b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--context", type=int, nargs="+", help="default: 512, 4096 and 16384")
    ours = (*MODES, DENSE, ENGINE)
    paths = (*ours, CHOSEN, FLOAT8, *RIVALS)
    parser.add_argument("--paths", nargs="+", choices=paths, default=ours)
    parser.add_argument("--rivals", action="store_true", help="and both paths of transformers")
    parser.add_argument("--attention", nargs="+", choices=list(AttentionMode), default=["full"])
    parser.add_argument("--page-budget", type=int, default=2048, help="tokens that a token reads")
    parser.add_argument("--page-size", type=int, default=PAGE_SIZE, help="tokens of a K/V page")
    parser.add_argument(
        "--gate-rank", type=int, default=64, help="of the gates of --attention gate"
    )
    parser.add_argument(
        "--crossover",
        type=int,
        nargs="*",
        metavar="CONTEXT",
        help="and where a budget starts to win, at these contexts",
    )
    parser.add_argument("--density", type=float, help="of neurons; default: the model's")
    parser.add_argument("--layers", type=int, help="default: the model's")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, help="CPU threads; default: as serving takes")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the timed prompt")
    parser.add_argument("--profile", action="store_true", help="a table of kernels for each step")
    parser.add_argument("--seconds", type=float, default=540, help="start nothing after so long")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json, row by row")
    parser.add_argument("--commit", help="what is measured; default: as git says")
    args = parser.parse_args()
    positions = shapes.find(args.model).shape.positions
    args.context = args.context or [n for n in (512, 4096, 16384) if n <= positions]
    if args.crossover == []:
        args.crossover = [n for n in CONTEXTS if n <= positions]
    check(parser, args, positions)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, positions: int) -> None:
    """Ends the program with the name of a flag that cannot be."""
    for flag in ("context", "crossover"):
        for context in getattr(args, flag) or ():
            if not 1 < context <= positions:
                parser.error(f"--{flag}: {context} is not 2 to the {positions} of {args.model}")
    least = MIN_BUDGET * args.page_size
    if args.page_size < 1:
        parser.error(f"--page-size: {args.page_size} is not positive")
    if args.page_budget < least:
        parser.error(f"--page-budget: {args.page_budget} is less than {least}")
    if args.gate_rank < 1:
        parser.error(f"--gate-rank: {args.gate_rank} is not positive")
    if args.crossover and max(args.crossover) <= args.page_budget:
        parser.error(f"--crossover: nothing is beyond --page-budget {args.page_budget}")
