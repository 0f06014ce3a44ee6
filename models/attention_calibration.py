"""Measures from which context on choosing pages to read is faster than reading all of them.

For one request, whose step holds the fewest bytes to save beside the same work to choose: with more
of them choosing pays earlier. So what is found holds for every step, and the answer of a request
does not depend on how many others there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from .attention import Attention, LayerCache
from .batch import FfnMode, ForwardBatch, PageBudgets
from .calibration import device_seconds, shortest
from .capture import captured
from .decoder import Decoder

LAYERS = 8  # in one run, so that no cache holds what the next run reads
Seconds = dict[int, tuple[float, float]]  # by context: reading all of it, and choosing


@torch.inference_mode()
def full_up_to(
    decoder: Decoder, caches: list[LayerCache], budget: int, max_context: int, *, graphs: bool
) -> int:
    """The longest context that is to be read in full, in tokens as the budget: beyond it choosing
    was found to be faster."""
    return crossover(_measure(decoder, caches, budget, max_context, graphs), budget, max_context)


def crossover(seconds: Seconds, budget: int, max_context: int) -> int:
    """One less than the first measured context from which on choosing is always faster.

    What lies between that and the last one where it is not may be either: it is read in full.
    """
    slower = [context for context, (full, chosen) in seconds.items() if chosen >= full]
    faster = [context for context in seconds if context > max(slower, default=0)]
    if not seconds:
        return budget
    return min(faster) - 1 if faster else max_context


def _contexts(budget: int, longest: int) -> list[int]:
    """Beyond the budget, each half as long again or a third longer than the one before."""
    doubled = [budget << i for i in range(20)]
    found = {context for n in doubled for context in (n, n + n // 2)}
    return [*sorted(n for n in found if budget < n < longest), longest]


def _measure(
    decoder: Decoder, caches: list[LayerCache], budget: int, max_context: int, graphs: bool
) -> Seconds:
    page_size = caches[0].k.shape[2]
    longest = min(max_context, caches[0].k.shape[0] * page_size)
    for cache in caches[:LAYERS]:  # what has never been written may be no number
        for part in (cache.k, cache.v, cache.summary):
            if part is not None:
                part[: -(-longest // page_size)].normal_()
    # as wide as a graph's, whatever the context: the kernels are made for the width
    width, num_pages = -(-max_context // page_size), caches[0].k.shape[0]
    table = torch.arange(width, dtype=torch.int32, device=decoder.embedding.device) % num_pages
    seconds: Seconds = {}
    for context in _contexts(budget, longest):
        batch = _token(context, table[None])
        budgets = _budget(-(-budget // page_size), decoder.embedding.device)
        clocks = {
            name: _clock(decoder, caches, replace(batch, budgets=each), graphs)
            for name, each in (("full", None), ("chosen", budgets))
        }
        times = shortest(clocks)
        seconds[context] = times["full"], times["chosen"]
    return seconds


def _token(context: int, page_tables: torch.Tensor) -> ForwardBatch:
    """One token at the end of a context, whose pages lie one after the other."""
    place = torch.tensor([context - 1], device=page_tables.device)
    return ForwardBatch(
        token_ids=torch.zeros_like(place),
        positions=place,
        slots=place,
        request_ids=torch.zeros_like(place),
        page_tables=page_tables,
        query_lens=(1,),
        context_lens=(context,),
        sample_at=None,
        ffn_mode=FfnMode.TOKEN,
    )


def _budget(num_pages: int, device: torch.device) -> PageBudgets:
    one = torch.ones(1, device=device)
    return PageBudgets(torch.full((1,), num_pages, dtype=torch.int32, device=device), one, one)


def _clock(
    decoder: Decoder, caches: list[LayerCache], batch: ForwardBatch, graphs: bool
) -> Callable[[], float]:
    """A function that attends once in some layers and returns the seconds that one of them took."""
    assert decoder.rope is not None
    rope, pairs = decoder.rope, list(zip(decoder.layers, caches, strict=True))[:LAYERS]
    config, like = decoder.config, decoder.embedding
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = torch.randn(1, width, dtype=like.dtype, device=like.device)

    def run() -> None:
        for layer, cache in pairs:
            attention = layer.get_submodule("attention")
            assert isinstance(attention, Attention)
            attention.attend(qkv, rope, cache, batch)

    once = captured(run)[0].replay if graphs else run
    return lambda: device_seconds(once) / len(pairs)
