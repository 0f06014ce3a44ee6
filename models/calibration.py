"""Measures the FFN modes of a loaded model on this machine, so that the policy never guesses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from . import calibration_cache
from .batch import FfnMode, ForwardBatch
from .calibration_cache import Seconds
from .capture import captured
from .decoder import Decoder
from .layers import Norm
from .sequence import Observed, observe, random_ids, sequence_batch
from .sparsity.policy import FfnPolicy

REPEATS = 12
SECONDS = 0.5  # for one size; a large model gets fewer repeats, but two
SAMPLE = {"cpu": 64, "cuda": 256}  # random tokens run through the model; larger steps repeat them
# On a GPU one run goes through so many layers: their weights do not fit into its L2 cache, so that
# every layer's are read from memory, as in a decode step.
LAYERS = 8
RUNS = 5  # between two events: the first one's launch is in the time, those of the others are not
N = TypeVar("N", bound=str)  # what a way is called
Inputs = list[tuple[nn.Module, Tensor, Norm]]  # FFNs with their residual [T, hidden] and norm


@torch.inference_mode()
def calibrate(
    decoder: Decoder,
    max_tokens: int,
    decode_sizes: Sequence[int] = (),
    *,
    graphs: bool = False,
    anew: bool = False,
) -> FfnPolicy:
    """The fastest mode of each of `decode_sizes`, and for larger steps up to `max_tokens`.

    A table that an earlier start has left is taken, unless `anew`. `graphs`: decode steps are CUDA
    graphs, and are timed as such; what the host takes to launch them would drown a small one.
    """
    if not decoder.config.activation.is_sparse:
        return FfnPolicy.always(FfnMode.DENSE)
    device = decoder.embedding.device
    seen = observe(decoder, random_ids(decoder, SAMPLE[device.type]))
    sizes = _sizes(decode_sizes, max_tokens)
    key = calibration_cache.key(decoder, sizes, seen.active.mean().item(), graphs)
    seconds = None if anew else calibration_cache.read(key)
    if seconds is None:
        seconds = measure(decoder, seen, sizes, graphs)
        calibration_cache.write(key, seconds)
    return FfnPolicy.fastest(seconds)


def _sizes(decode_sizes: Sequence[int], max_tokens: int) -> list[int]:
    """Steps worth timing: those that decoding takes, beyond them powers of 4, and the largest."""
    largest = max(decode_sizes, default=0)
    beyond = [4**i for i in range(20) if largest < 4**i < max_tokens]
    return sorted({*decode_sizes, *beyond, max_tokens})


def measure(decoder: Decoder, seen: Observed, sizes: Sequence[int], graphs: bool) -> Seconds:
    """Seconds that one layer's FFN takes for each size in each mode, on what it has `seen`."""
    layers = _layers(seen.active, decoder.embedding.device)
    names = ("ffn", "ffn_norm")
    blocks = [[decoder.layers[i].get_submodule(name) for name in names] for i in layers]
    seconds: Seconds = {}
    for size in sizes:
        tokens = torch.arange(size, device=seen.active.device) % len(seen.logits)
        step = sequence_batch(tokens)
        inputs: Inputs = []
        for i, (ffn, norm) in zip(layers, blocks, strict=True):
            assert isinstance(norm, Norm)
            inputs.append((ffn, seen.ffn_inputs[i][1][tokens], norm))
        clocks = {
            mode: _clock(inputs, replace(step, ffn_mode=mode), graphs=graphs)
            for mode in decoder.ops.modes
        }
        seconds[size] = shortest(clocks)
    return seconds


def _layers(active: Tensor, device: torch.device) -> list[int]:
    """On a GPU as many as its cache cannot hold, spread over all; on a CPU, where one is slow
    enough, the one whose active fraction is nearest to the mean."""
    if device.type == "cuda":
        num_layers = len(active)
        step = max(1, num_layers // LAYERS)
        return list(range(0, num_layers, step))[:LAYERS]
    return [int((active - active.mean()).abs().argmin())]


def shortest(clocks: dict[N, Callable[[], float]]) -> dict[N, float]:
    """The shortest run of each mode. They take turns, so that a busy neighbour slows them all."""
    times: dict[N, list[float]] = {mode: [] for mode in clocks}
    end = time.perf_counter() + SECONDS
    for i in range(1 + REPEATS):
        for mode, clock in clocks.items():
            times[mode].append(clock())
        if i > 1 and time.perf_counter() > end:
            break
    return {mode: min(found[1:]) for mode, found in times.items()}  # the first one warms up


def _clock(inputs: Inputs, batch: ForwardBatch, *, graphs: bool) -> Callable[[], float]:
    """A function that runs the FFNs once and returns the seconds that one of them took."""

    def run() -> None:
        for ffn, residual, norm in inputs:
            ffn(residual, norm, batch, 0)

    if batch.token_ids.device.type == "cpu":
        return lambda: _wall_seconds(run) / len(inputs)
    once = captured(run)[0].replay if graphs else run
    return lambda: device_seconds(once) / len(inputs)


def _wall_seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def device_seconds(run: Callable[[], None]) -> float:
    """Between two events on the device, so that waiting for the host's clock is not in it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(RUNS):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / RUNS
