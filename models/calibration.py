"""Measures the FFN modes of a loaded model on this machine, so that the policy never guesses."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from .attention import LayerCache
from .batch import FfnMode, ForwardBatch
from .decoder import Decoder
from .sparsity.policy import FfnPolicy

REPEATS = 3


def calibrate(decoder: Decoder, max_tokens: int, page_size: int = 16) -> FfnPolicy:
    """The fastest mode for 1, 4, 16 ... `max_tokens` tokens: about a second for a small model.

    Times an early layer on what random tokens leave in its residual stream: the density is the
    model's own there, but not the mean over its layers.
    """
    if not decoder.config.activation.is_sparse:
        return FfnPolicy.always(FfnMode.DENSE)
    index = min(1, len(decoder.layers) - 1)
    batch, residual, x = _ffn_input(decoder, index, max_tokens, page_size)
    ffn = decoder.layers[index].get_submodule("ffn")
    sizes = [4**i for i in range(20) if 4**i < max_tokens] + [max_tokens]
    return FfnPolicy.fastest(
        {
            size: {
                mode: _seconds(ffn, x[:size], residual[:size], _with_mode(batch, mode, size))
                for mode in FfnMode
            }
            for size in sizes
        }
    )


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


def _with_mode(batch: ForwardBatch, mode: FfnMode, size: int) -> ForwardBatch:
    return ForwardBatch(
        token_ids=batch.token_ids[:size],
        positions=batch.positions[:size],
        slots=batch.slots[:size],
        request_ids=batch.request_ids[:size],
        page_tables=batch.page_tables,
        query_lens=(size,),
        context_lens=(size,),
        sample_at=batch.sample_at,
        ffn_mode=mode,
    )


def _ffn_input(
    decoder: Decoder, index: int, num_tokens: int, page_size: int
) -> tuple[ForwardBatch, Tensor, Tensor]:
    """Run random tokens up to layer `index` and return what its FFN is given."""
    config, device, dtype = decoder.config, decoder.embedding.device, decoder.embedding.dtype
    # One request may be longer than the model's context: the positions then start over.
    positions = torch.arange(num_tokens, device=device) % config.max_positions
    num_pages = -(-num_tokens // page_size)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (num_tokens,), generator=generator)
    batch = ForwardBatch(
        token_ids=ids.to(device),
        positions=positions,
        slots=torch.arange(num_tokens, device=device),
        request_ids=torch.zeros_like(positions),
        page_tables=torch.arange(num_pages, dtype=torch.int32, device=device)[None],
        query_lens=(num_tokens,),
        context_lens=(num_tokens,),
        sample_at=torch.zeros(1, dtype=torch.int64, device=device),
        ffn_mode=FfnMode.DENSE,
    )
    shape = (num_pages, config.num_kv_heads, page_size, config.head_dim)
    cache = LayerCache(*(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))
    captured: list[tuple[Tensor, Tensor]] = []

    def capture(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        captured.append((args[0], args[1]))

    hook = decoder.layers[index].get_submodule("ffn").register_forward_pre_hook(capture)
    decoder.hidden(batch, [cache] * (index + 1), num_layers=index + 1)
    hook.remove()
    x, residual = captured[0]
    return batch, residual, x
