"""Measures the FFN modes of a loaded model on this machine, so that the policy never guesses."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from .batch import FfnMode, ForwardBatch
from .decoder import Decoder
from .sequence import observe, random_ids, sequence_batch
from .sparsity.policy import FfnPolicy

REPEATS = 12
SECONDS = 0.5  # for one size; a large model gets fewer repeats, but two
SAMPLE = 64  # random tokens that are run through the model; larger steps repeat them


@torch.inference_mode()
def calibrate(decoder: Decoder, max_tokens: int) -> FfnPolicy:
    """The fastest mode for 1, 4, 16 ... `max_tokens` tokens: about a second for a small model.

    Times the layer whose active fraction on random tokens is nearest to the mean of all layers.
    """
    if not decoder.config.activation.is_sparse:
        return FfnPolicy.always(FfnMode.DENSE)
    seen = observe(decoder, random_ids(decoder, SAMPLE))
    index = int((seen.active - seen.active.mean()).abs().argmin())
    ffn, (x, residual) = decoder.layers[index].get_submodule("ffn"), seen.ffn_inputs[index]
    seconds: dict[int, dict[FfnMode, float]] = {}
    for size in [4**i for i in range(20) if 4**i < max_tokens] + [max_tokens]:
        tokens = torch.arange(size, device=x.device) % len(x)
        step = sequence_batch(tokens)
        batches = [replace(step, ffn_mode=mode) for mode in FfnMode]
        seconds[size] = _shortest(ffn, x[tokens], residual[tokens], batches)
    return FfnPolicy.fastest(seconds)


def _shortest(
    ffn: nn.Module, x: Tensor, residual: Tensor, batches: list[ForwardBatch]
) -> dict[FfnMode, float]:
    """The shortest run of each mode. They take turns, so that a busy neighbour slows them all."""
    times: dict[FfnMode, list[float]] = {batch.ffn_mode: [] for batch in batches}
    end = time.perf_counter() + SECONDS
    for i in range(1 + REPEATS):
        for batch in batches:
            times[batch.ffn_mode].append(_seconds(ffn, x, residual, batch))
        if i > 1 and time.perf_counter() > end:
            break
    return {mode: min(found[1:]) for mode, found in times.items()}  # the first one warms up


def _seconds(ffn: nn.Module, x: Tensor, residual: Tensor, batch: ForwardBatch) -> float:
    _synchronize(x.device)
    start = time.perf_counter()
    ffn(x, residual, batch, 0)
    _synchronize(x.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
