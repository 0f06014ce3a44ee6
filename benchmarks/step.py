"""Decode steps of a synthetic model on one device, without HTTP, every path side by side.

    python benchmarks/step.py                                  # TurboSparse-Mistral-7B's shape
    python benchmarks/step.py --model turbosparse-mixtral-47b --context 512
    python benchmarks/step.py --paths generate continuous --batch 1 8 --context 512

Paths: `token`, `union` and `masked` are the FFN modes of the sparse model (`masked` computes every
neuron and applies the mask afterwards; `chosen` marks the one that serving takes), `dense` is the
ordinary model of the same shape on our code, SiLU and no predictor; `generate` and `continuous` are
that model in transformers, --rivals adds them. `engine` adds a prompt's speed, the time to the
first token, and the share of a step that the engine's loop adds to the bare one.

Weights are random, predictors planted: the figures are speed alone. A step is a captured graph of
the whole model, logits too. The share of the roof is the bytes that a step must read over what a
kernel that only reads has reached in the same run.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from decode import Step
from machine import facts
from profile_steps import table
from rivals import Rival
from roof import PAPER_ROOF, bandwidth
from rows import Report, Row

from turbosparse.engine.graphs import can_capture, decode_sizes
from turbosparse.models.batch import FfnMode
from turbosparse.models.calibration import calibrate
from turbosparse.models.decoder import Decoder
from turbosparse.models.kernels import ops
from turbosparse.models.load import DTYPES, load
from turbosparse.models.machine import processor
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.models.tools import shapes

MODES = {"token": FfnMode.TOKEN, "union": FfnMode.UNION, "masked": FfnMode.DENSE}
ENGINE, DENSE = "engine", "dense"
RIVALS = ("generate", "continuous")
BASELINES = {  # sparse model -> the ordinary one of its shape
    "turbosparse-mistral-7b": "mistral-7b",
    "turbosparse-mixtral-47b": "mixtral-8x7b",
    "turbosparse-mistral-16m": "mistral-16m",
    "turbosparse-mixtral-30m": "mixtral-30m",
}
LONG, LONG_BATCHES = 4096, (1, 8)  # contexts beyond LONG are measured at these batches alone


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=BASELINES, default="turbosparse-mistral-7b")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--context", type=int, nargs="+", default=[512, 4096, 16384])
    ours = (*MODES, DENSE, ENGINE)
    parser.add_argument("--paths", nargs="+", choices=(*ours, *RIVALS), default=ours)
    parser.add_argument("--rivals", action="store_true", help="and both paths of transformers")
    parser.add_argument("--density", type=float, help="default: the model's")
    parser.add_argument("--layers", type=int, help="default: the model's")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, help="CPU threads; default: as serving takes")
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the timed prompt")
    parser.add_argument("--profile", action="store_true", help="a table of kernels for each step")
    parser.add_argument("--seconds", type=float, default=540, help="start nothing after so long")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json, row by row")
    parser.add_argument("--commit", help="what is measured; default: as git says")
    return parser.parse_args()


class Run:
    """One run: what is asked for, what the device can do, and the time that is left."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.device, self.dtype = torch.device(args.device), DTYPES[args.dtype]
        self.end = time.monotonic() + args.seconds
        self.roof = bandwidth(self.device)
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else processor()
        told = facts(name, args.commit)
        told["model"] = f"{args.model}, synthetic, {args.layers or 'all'} layers, {args.dtype}"
        told["roof"] = f"{self.roof / 1e12:.2f} TB/s read here (an H200: {PAPER_ROOF / 1e12:.2f})"
        self.report = Report(f"Steps of {args.model}", told, args.out)
        self.policy: FfnPolicy | None = None

    def points(self) -> Iterator[tuple[int, int]]:
        """(context, batch) of every decode step that is asked for."""
        for context in self.args.context:
            for batch in self.args.batch:
                if context <= LONG or batch in LONG_BATCHES:
                    yield context, batch

    def directory(self, name: str) -> Path:
        density = self.args.density if name == self.args.model else None
        shapes.describe_named(self.folder / name, name, layers=self.args.layers, density=density)
        return self.folder / name

    def load(self, name: str) -> Decoder:
        decoder = load(self.directory(name), self.device, self.dtype).decoder
        if self.args.threads:
            ops.set_num_threads(self.args.threads, decoder.ops)
        return decoder

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """What cannot be measured says why, and the run goes on."""
        try:
            yield
        except Exception as error:
            self.report.note(f"not measured: {what}: {type(error).__name__}: {_first_line(error)}")
        self.free()

    def in_time(self, what: str) -> bool:
        if time.monotonic() < self.end:
            return True
        self.report.note(f"not measured: {what}: {self.args.seconds:.0f} s are over")
        return False

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    args = arguments()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu measures small models")
    paths = dict.fromkeys((*args.paths, *(RIVALS if args.rivals else ())))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, Path(folder))
        if set(paths) & {*MODES, ENGINE}:
            measure_sparse(run, [path for path in paths if path in MODES], ENGINE in paths)
            run.free()
        if DENSE in paths:
            measure_dense(run)
            run.free()
        if rivals := [path for path in paths if path in RIVALS]:
            measure_rivals(run, rivals)


@torch.inference_mode()
def measure_sparse(run: Run, modes: list[str], engine: bool) -> None:
    args = run.args
    started = start_engine(run) if engine else None
    decoder = started.decoder if started else run.load(args.model)
    sizes = decode_sizes(max(args.batch))
    run.policy = calibrate(decoder, sizes[-1], sizes, graphs=can_capture(decoder))
    run.report.note(calibration_table(run.policy))
    if started is not None:
        with run.guarded("engine"):
            for row in started.rows(args.prompt):
                run.report.add(row)
    for context, batch in run.points():
        what = f"sparse, batch {batch}, context {context}"
        if modes and run.in_time(what):
            with run.guarded(what):
                measure_step(run, Step(decoder, batch, context), modes)


def start_engine(run: Run) -> Any:
    """An engine_steps.Engine; None where what the engine needs is not installed, which is said."""
    with run.guarded("engine"):
        start = import_module("engine_steps").start
        args, directory = run.args, run.directory(run.args.model)
        return start(directory, args.device, args.dtype, 2 * args.prompt, args.threads)
    return None


def calibration_table(policy: FfnPolicy) -> str:
    """What serving chooses by."""
    lines = ["one layer's FFN: tokens, microseconds by mode, chosen"]
    for size, times in sorted(policy.seconds.items()):
        each = " ".join(f"{mode} {seconds * 1e6:.1f}" for mode, seconds in times.items())
        lines.append(f"{size:>4}  {each}  {policy.mode_for(size)}")
    return "\n".join(lines)


@torch.inference_mode()
def measure_dense(run: Run) -> None:
    decoder = run.load(BASELINES[run.args.model])
    for context, batch in run.points():
        what = f"dense, batch {batch}, context {context}"
        if run.in_time(what):
            with run.guarded(what):
                measure_step(run, Step(decoder, batch, context), [DENSE])


def measure_step(run: Run, step: Step, paths: list[str]) -> None:
    """One row a path; all of them on the same requests, K and V."""
    seen = step.look()
    for path in paths:
        mode = MODES.get(path, FfnMode.DENSE)
        chosen = None
        if path in MODES and run.policy is not None:
            chosen = run.policy.mode_for(decode_sizes(step.size)[-1])
        seconds = step.seconds(mode)
        skips = mode is not FfnMode.DENSE
        run.report.add(
            Row(
                "decode",
                path,
                step.size,
                step.context,
                seconds * 1e3,
                step.size / seconds,
                roof=step.bytes(seen, skips=skips) / run.roof / seconds,
                active=seen.active if path in MODES else None,
                union=seen.union if path in MODES else None,
                chosen=mode is chosen,
            )
        )
        if run.args.profile:
            run.report.note(f"{path}, batch {step.size}\n{table(step.runner(mode), run.device)}")


def measure_rivals(run: Run, paths: list[str]) -> None:
    directory = run.directory(BASELINES[run.args.model])
    rival: Rival | None = None
    with run.guarded("transformers"):
        rival = Rival(directory, run.device, run.dtype)
    if rival is None:
        return
    for path in paths:
        seconds_of: Callable[[int, int], float] = getattr(rival, path)
        for context, batch in run.points():
            what = f"{path}, batch {batch}, context {context}"
            if run.in_time(what):
                with run.guarded(what):
                    seconds = seconds_of(batch, context)
                    row = Row("decode", path, batch, context, seconds * 1e3, batch / seconds)
                    run.report.add(row)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


if __name__ == "__main__":
    main()
