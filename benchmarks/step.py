"""Decode steps of a synthetic model on one device, without HTTP, every path side by side.

    python benchmarks/step.py                                  # TurboSparse-Mistral-7B's shape
    python benchmarks/step.py --model turbosparse-mixtral-47b --context 512
    python benchmarks/step.py --paths generate continuous --batch 1 8 --context 512
    python benchmarks/step.py --model bamboo-7b --batch 1 8 --context 32768 --paths chosen dense \\
        --attention full bound gate --crossover

Paths: `token`, `union` and `masked` are the FFN modes of the sparse model (`masked` computes every
neuron and applies the mask afterwards); `chosen` marks the one that serving takes, and as a path
measures that one alone. `dense` is the ordinary model of the same shape on our code, SiLU and no
predictor; `float8` is `chosen` with the predictors rounded to 8 bits, which is approximate.
`generate` and `continuous` are that model in transformers, --rivals adds them. `engine`
adds a prompt's speed, the time to the first token, and the share of a step that the engine's loop
adds to the bare one. A Bamboo is computed exactly, gates first; how fast it is with separate
predictors is seen in its twin that has them inside, turbosparse-mistral-7b --density 0.15.

--attention `bound` and `gate` read --page-budget tokens of the context, on the paths of ours. At
the end stands what each sparsity is worth alone and both together over neither: the dense path with
full attention. --crossover says from which context on a budget is faster.

Weights are random, predictors or gates planted, and so are keys, values and attention's gates: the
figures are speed alone. On a GPU a step is a captured graph of the whole model, logits too. The
share of the roof is the bytes that a step must read over what a kernel that only reads has reached
in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import crossover
import ratios
import torch
from decode import Seen, Step, random_gates
from machine import facts
from profile_steps import table
from rivals import Rival
from roof import PAPER_ROOF, bandwidth
from rows import Report, Row
from step_flags import BASELINES, CHOSEN, DENSE, ENGINE, FLOAT8, MODES, NAMES, RIVALS, parse

from turbosparse.engine.graphs import can_capture, decode_sizes
from turbosparse.models import rounding
from turbosparse.models.batch import FfnMode
from turbosparse.models.calibration import calibrate
from turbosparse.models.decoder import Decoder
from turbosparse.models.kernels import ops
from turbosparse.models.load import DTYPES, load
from turbosparse.models.machine import processor
from turbosparse.models.sparsity.blocks import AttentionMode
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.models.tools import shapes

LONG, LONG_BATCHES = 4096, (1, 8)  # contexts beyond LONG are measured at these batches alone


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

    def ways(self, context: int) -> list[str]:
        """The kinds of attention that differ at this context."""
        budget = self.args.page_budget
        if context > budget:
            return list(dict.fromkeys(self.args.attention))
        return [way for way in self.args.attention if way == AttentionMode.FULL][:1]

    def reading(self, decoder: Decoder, way: str) -> contextlib.AbstractContextManager[None]:
        """With gates meanwhile where pages are chosen by them."""
        if way == AttentionMode.GATE:
            return random_gates(decoder, self.args.gate_rank)
        return contextlib.nullcontext()

    def directory(self, name: str) -> Path:
        density = self.args.density if name == self.args.model else None
        shapes.describe_named(self.folder / name, name, layers=self.args.layers, density=density)
        return self.folder / name

    def load(self, name: str) -> Decoder:
        decoder = load(self.directory(name), self.device, self.dtype).decoder
        if self.args.threads:
            ops.set_num_threads(self.args.threads, decoder.ops)
        self.free()  # of what laying out the weights has left behind: K and V may need it
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
    args = parse(__doc__.splitlines()[0])
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu measures small models")
    paths = dict.fromkeys((*args.paths, *(RIVALS if args.rivals else ())))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, Path(folder))
        if set(paths) & {*MODES, CHOSEN, FLOAT8, ENGINE} or args.crossover:
            modes = [path for path in paths if path in (*MODES, CHOSEN, FLOAT8)]
            measure_sparse(run, modes, ENGINE in paths)
            run.free()
        if DENSE in paths:
            measure_dense(run)
            run.free()
        if rivals := [path for path in paths if path in RIVALS]:
            measure_rivals(run, rivals)
        if compared := ratios.table(run.report.rows, DENSE):
            run.report.note(compared)


@torch.inference_mode()
def measure_sparse(run: Run, modes: list[str], engine: bool) -> None:
    args = run.args
    started = start_engine(run) if engine else None
    decoder = started.decoder if started else run.load(args.model)
    sizes = decode_sizes(max(args.batch))
    policy = calibrate(decoder, sizes[-1], sizes, graphs=can_capture(decoder))
    run.policy = policy
    run.report.note(calibration_table(policy))
    if started is not None:
        with run.guarded("engine"):
            for row in started.rows(args.prompt):
                run.report.add(row)
    measure_points(run, decoder, "sparse", [mode for mode in modes if mode != FLOAT8])
    if args.crossover:
        measure_crossover(run, decoder, policy)
    if FLOAT8 in modes:
        measure_rounded(run, decoder)


def measure_points(run: Run, decoder: Decoder, what: str, paths: list[str]) -> None:
    """Every decode step that is asked for, on each of the paths."""
    for context, batch in run.points():
        where = f"{what}, batch {batch}, context {context}"
        if paths and run.in_time(where):
            with run.guarded(where):
                measure_step(run, step_of(run, decoder, batch, context), paths)


def measure_rounded(run: Run, decoder: Decoder) -> None:
    """The last that is asked of this decoder: its own predictors do not come back."""
    with run.guarded(FLOAT8):
        rounding.round_predictors(decoder)
        measure_points(run, decoder, FLOAT8, [FLOAT8])


def step_of(run: Run, decoder: Decoder, batch: int, context: int) -> Step:
    """With summaries where pages are to be chosen."""
    chooses = any(way != AttentionMode.FULL for way in run.ways(context))
    return Step(decoder, batch, context, page_size=run.args.page_size, summaries=chooses)


def measure_crossover(run: Run, decoder: Decoder, policy: FfnPolicy) -> None:
    """For few requests, by every way to choose pages that was asked for, by bound if none was."""
    args = run.args
    ways = [way for way in args.attention if way != AttentionMode.FULL] or [AttentionMode.BOUND]
    for way in dict.fromkeys(ways):
        beyond: int | None = None
        for batch in (batch for batch in args.batch if batch in LONG_BATCHES):
            what = f"crossover by {way}, batch {batch}"
            if run.in_time(what):
                with run.guarded(what), run.reading(decoder, way):
                    beyond = measure_contexts(run, decoder, policy, way, batch, beyond)


def measure_contexts(
    run: Run, decoder: Decoder, policy: FfnPolicy, way: str, batch: int, beyond: int | None
) -> int:
    """All contexts on one K/V. `beyond` is the context up to which serving reads all of it, where
    that has been measured; returns it."""
    contexts, budget = sorted(run.args.crossover), run.args.page_budget
    page_size = run.args.page_size
    step = Step(decoder, batch, contexts[-1], page_size=page_size, summaries=True)
    if beyond is None:
        served = run.directory(run.args.model), step.caches, budget, contexts[-1]
        beyond = crossover.serving_reads_in_full(decoder, *served)
    mode = policy.mode_for(decode_sizes(batch)[-1])
    found: list[crossover.Point] = []
    for point in crossover.points(step, mode, contexts, budget, beyond):
        found.append(point)
        for row in point.rows(NAMES[mode], way):
            run.report.add(row)
    run.report.note(crossover.table(found, way))
    return beyond


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
    measure_points(run, run.load(BASELINES[run.args.model]), "dense", [DENSE])


def measure_step(run: Run, step: Step, paths: list[str]) -> None:
    """One row a path and way of attention; all of them on the same requests, K and V."""
    seen = step.look()
    chosen = None
    if run.policy is not None:
        chosen = NAMES[run.policy.mode_for(decode_sizes(step.size)[-1])]
    paths = [chosen if path == CHOSEN and chosen else path for path in paths]
    for way in run.ways(step.context):
        budget = None if way == AttentionMode.FULL else run.args.page_budget
        with run.reading(step.decoder, way):
            for path in dict.fromkeys(paths):
                run.report.add(row_of(run, step, seen, path, chosen, way, budget))
                if run.args.profile:
                    mode = mode_of(path, chosen)
                    kernels = table(step.runner(mode, budget), run.device)
                    run.report.note(f"{path}, {way}, batch {step.size}\n{kernels}")


def mode_of(path: str, chosen: str | None) -> FfnMode:
    """What a path calls the FFNs by; `chosen` is that of the mode which serving takes."""
    return MODES.get(chosen if path == FLOAT8 and chosen else path, FfnMode.DENSE)


def row_of(
    run: Run, step: Step, seen: Seen, path: str, chosen: str | None, way: str, budget: int | None
) -> Row:
    mode, skips = mode_of(path, chosen), path in (*MODES, FLOAT8)
    seconds = step.seconds(mode, budget)
    read = step.bytes(seen, skips=mode is not FfnMode.DENSE, budget=budget)
    return Row(
        "decode",
        path,
        step.size,
        step.context,
        seconds * 1e3,
        step.size / seconds,
        roof=read / run.roof / seconds,
        active=seen.active if skips else None,
        union=seen.union if skips else None,
        chosen=path == chosen,
        attention=way,
        approximate=path == FLOAT8,
    )


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
