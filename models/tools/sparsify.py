"""`turbosparse sparsify`: a dense checkpoint in, a TurboSparse one out, training in between."""
# pyright: basic

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch

from ..config import ModelError
from .layout import end_of_document, read_source
from .mix import Encoder, Place, Rows, TokenStream, read_mix
from .output import check_destination
from .plan import Plan, add_plan_arguments, complete, plan_arguments

STACK = ("transformers", "accelerate", "tensorboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse sparsify`."""
    parser.add_argument("model", type=Path, help="directory of a dense Llama or Mistral")
    parser.add_argument("--out", type=Path, required=True, help="directory to write, new or empty")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="YAML list of {path, weight, name}, or one .txt, .jsonl (field text), either .gz",
    )
    parser.add_argument("--holdout", type=Path, help="text to measure on, never trained on")
    parser.add_argument("--holdout-tokens", type=int, default=65_536, help="of it, at most [65536]")
    add_plan_arguments(parser)
    parser.add_argument("--micro-batch", type=int, default=1, help="rows per device and pass [1]")
    parser.add_argument("--save-steps", type=int, default=500, help="between checkpoints [500]")
    parser.add_argument("--log-steps", type=int, default=10, help="between lines [10]")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="memory for time")
    parser.add_argument("--fsdp", action="store_true", help="shard over the processes of torchrun")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def run(arguments: argparse.Namespace) -> int:
    """From flags to a checkpoint directory; the status is 128 + the signal that ended it.

    Raises ModelError, before anything is trained, with what is wrong about the flags or files.
    """
    source, out = arguments.model, arguments.out
    settings, config = read_source(source)
    plan = complete(plan_arguments(arguments), config, gpu=torch.cuda.is_available())
    for flag in ("micro_batch", "save_steps", "log_steps", "holdout_tokens"):
        if getattr(arguments, flag) < 1:
            name = flag.replace("_", "-")
            raise ModelError(f"--{name} {getattr(arguments, flag)} is not positive")
    check_destination(out, empty=True)
    work = working_folder(out, arguments.resume)
    encoder = Encoder(source, end_of_document(source, settings), config.vocab_size)
    sources = read_mix(arguments.data)
    for text in sources:
        TokenStream(text, encoder, plan.seed, Place()).take(1)
    held_out = []
    if arguments.holdout is not None:
        held_out = read_held_out(arguments.holdout, encoder, plan, arguments.holdout_tokens)
    require_stack()
    from .recovery import Machine
    from .sparsification import Job, sparsify

    machine = Machine(
        micro_batch=arguments.micro_batch,
        save_steps=arguments.save_steps,
        log_steps=arguments.log_steps,
        fsdp=arguments.fsdp,
        checkpointing=arguments.gradient_checkpointing,
    )
    job = Job(source, settings, plan, machine, sources, encoder, held_out, work, out)
    return sparsify(job, resume=arguments.resume)


def working_folder(out: Path, resume: bool) -> Path:
    """Where checkpoints and curves are kept; raises ModelError where `--resume` does not fit it."""
    work = out.with_name(out.name + ".training")
    begun = (work / "run.json").is_file()
    if resume and not begun:
        raise ModelError(f"--resume: {work} holds no run that was begun")
    if begun and not resume:
        raise ModelError(
            f"--out: {work} holds an interrupted run: go on with --resume, or remove it"
        )
    return work


def read_held_out(path: Path, encoder: Encoder, plan: Plan, num_tokens: int) -> list[list[int]]:
    """Rows of a text, each token once; raises ModelError where it has not one row."""
    (text,) = read_mix(path)
    length = plan.sequence_length or 1
    rows = Rows((text,), encoder, length, seed=0)
    found: list[list[int]] = []
    while len(found) < max(1, num_tokens // length):
        row = next(rows)
        if rows.epoch > 0:
            break
        found.append(row)
    if not found:
        raise ModelError(f"--holdout: {path} has fewer tokens than a row of {length}")
    return found


def require_stack() -> None:
    """Raises ModelError with what is not installed."""
    missing = [name for name in STACK if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"sparsify trains with {', '.join(missing)}: pip install 'turbosparse[train]'"
        )
