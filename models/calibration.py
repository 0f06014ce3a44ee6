"""Measures the FFN modes of a loaded model on this machine, so that the policy never guesses."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from .batch import FfnMode, ForwardBatch
from .decoder import Decoder
from .sequence import sequence_batch, sequence_cache
from .sparsity.policy import FfnPolicy

REPEATS = 3
SAMPLE = 64  # random tokens that are run through the model; larger steps repeat them


def calibrate(decoder: Decoder, max_tokens: int) -> FfnPolicy:
    """The fastest mode for 1, 4, 16 ... `max_tokens` tokens: about a second for a small model.

    Times the layer whose active fraction on random tokens is nearest to the mean of all layers.
    """
    if not decoder.config.activation.is_sparse:
        return FfnPolicy.always(FfnMode.DENSE)
    ffn, x, residual = typical_layer(decoder)
    sizes = [4**i for i in range(20) if 4**i < max_tokens] + [max_tokens]
    seconds: dict[int, dict[FfnMode, float]] = {}
    for size in sizes:
        tokens = torch.arange(size, device=x.device) % len(x)
        step = sequence_batch(tokens)
        seconds[size] = {
            mode: _seconds(ffn, x[tokens], residual[tokens], replace(step, ffn_mode=mode))
            for mode in FfnMode
        }
    return FfnPolicy.fastest(seconds)


def typical_layer(decoder: Decoder) -> tuple[nn.Module, Tensor, Tensor]:
    """The FFN of mean density, and what random tokens bring it: (ffn, x, residual), [T, hidden]."""
    config, device = decoder.config, decoder.embedding.device
    inputs: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        inputs.append((args[0], args[1]))

    ffns = [layer.get_submodule("ffn") for layer in decoder.layers]
    hooks = [ffn.register_forward_pre_hook(look) for ffn in ffns]
    num_tokens = min(SAMPLE, config.max_positions)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator).to(device)
    active = torch.zeros(config.num_layers, device=device)
    try:
        decoder.hidden(sequence_batch(ids, active=active), sequence_cache(decoder, num_tokens))
    finally:
        for hook in hooks:
            hook.remove()
    index = int((active - active.mean()).abs().argmin())
    x, residual = inputs[index]
    return ffns[index], x, residual


def _seconds(ffn: nn.Module, x: Tensor, residual: Tensor, batch: ForwardBatch) -> float:
    """The shortest of some runs after one that warms up."""
    times: list[float] = []
    for _ in range(1 + REPEATS):
        _synchronize(x.device)
        start = time.perf_counter()
        ffn(x, residual, batch, 0)
        _synchronize(x.device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
