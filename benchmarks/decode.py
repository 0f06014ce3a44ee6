"""Decode steps of our own model, without HTTP and without the engine's loop: one token for each of
some requests of equal length, as the captured graph that the engine replays, or eagerly where there
is none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from turbosparse.engine import kv_cache
from turbosparse.engine.graphs import StepGraphs, can_capture
from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch, PageBudgets
from turbosparse.models.decoder import Decoder
from turbosparse.models.kernels import reference
from turbosparse.models.layers import Norm
from turbosparse.models.random_weights import blocks
from turbosparse.models.sequence import random_ids
from turbosparse.models.sparsity import gates
from turbosparse.models.sparsity.ffn import SparseFFN
from turbosparse.models.sparsity.gates import attention_of
from turbosparse.models.sparsity.policy import FfnPolicy

PAGE_SIZE = 16  # the engine's, unless told otherwise
WARM_UP, REPLAYS = 3, 30


@dataclass(frozen=True, slots=True)
class Seen:
    """What one step reads: a layer's FFNs that any token reached, with the neurons they need."""

    tokens: int  # pairs of a token and an FFN
    active: float  # mean share of the neurons that a token keeps
    union: float  # share of those FFNs' neurons that any token keeps
    neuron_bytes: float  # of those FFNs, all neurons, but for gates that choose
    union_bytes: float  # of those FFNs, the neurons that any token keeps
    predictor_bytes: float  # of what chooses: predictors, or the gates where there are none


class Step:
    """`size` requests of up to `context` tokens each, over random K and V.

    With `summaries` of the pages, as a server keeps them that offers page budgets, a step may read
    a budget of them. Memory is the pages' own and what one layer's summaries take.
    """

    def __init__(
        self,
        decoder: Decoder,
        size: int,
        context: int,
        *,
        page_size: int = PAGE_SIZE,
        summaries: bool = False,
    ) -> None:
        self.decoder, self.size, self.context = decoder, size, context
        self.page_size = page_size
        width = -(-context // page_size)
        self.caches = caches(decoder, size * width, page_size, summaries=summaries)
        for cache in self.caches:
            _fill(cache)
        tables = torch.randperm(size * width).view(size, width).int()
        self.tables = tables.to(decoder.embedding.device)
        self.ids = random_ids(decoder, size)

    def batch(
        self, mode: FfnMode, budget: int | None = None, context: int | None = None
    ) -> ForwardBatch:
        """One token a request at the end of `context`, the longest by default, that reads a budget
        of tokens or, None, all of them. Contexts are up to a page shorter, so that as in a server
        not all requests fill their pages in the same step; the first one does."""
        last = (context or self.context) - 1
        shorter = torch.arange(self.size, device=self.tables.device) % min(self.page_size, last + 1)
        batch = decode_batch(self.ids, last - shorter, self.tables, mode, self.page_size)
        return batch if budget is None else replace(batch, budgets=self._budgets(budget))

    def _budgets(self, budget: int) -> PageBudgets:
        ones = torch.ones(self.size, device=self.tables.device)
        gate = attention_of(self.decoder.layers[0]).gate
        pages = (-(-budget // self.page_size) * ones).int()
        return PageBudgets(pages, ones, ones * (gate is not None))

    def model(self, mode: FfnMode, *, summaries: bool) -> Callable[[ForwardBatch], Tensor]:
        """A function that runs such a batch and returns its logits [size, vocab], with page
        summaries kept up or without."""
        kept = self.caches
        if not summaries:
            kept = [replace(cache, summary=None) for cache in kept]
        if not can_capture(self.decoder):
            return lambda batch: self.decoder(batch, kept)
        graphs = StepGraphs(
            self.decoder,
            kept,
            FfnPolicy.always(mode),
            max_tokens=self.size,
            max_pages=self.tables.shape[1],
        )
        graphs.capture(only=self.size)

        def run(batch: ForwardBatch) -> Tensor:
            logits = graphs.run(batch)
            assert logits is not None, f"no graph for {self.size} tokens"
            return logits

        return run

    def runner(self, mode: FfnMode, budget: int | None = None) -> Callable[[], Tensor]:
        """A function that runs the step in this mode and returns its logits [size, vocab]."""
        model, batch = self.model(mode, summaries=budget is not None), self.batch(mode, budget)
        return lambda: model(batch)

    def seconds(self, mode: FfnMode, budget: int | None = None) -> float:
        """Median time of a step, one after the other as fast as they go."""
        return median_seconds(self.runner(mode, budget), self.decoder.embedding.device)

    def look(self) -> Seen:
        """Run it once, looking at every FFN's tokens and masks."""
        found: list[tuple[int, int, int, int, int]] = []

        def before(ffn: nn.Module, args: tuple[Tensor, Norm]) -> None:
            residual, norm = args[:2]
            x = self.decoder.ops.rms_norm(residual, norm.weight, norm.eps)
            found.extend(_look(ffn, x, residual))

        ffns = [layer.get_submodule("ffn") for layer in self.decoder.layers]
        hooks = [ffn.register_forward_pre_hook(before) for ffn in ffns]
        try:
            self.decoder(self.batch(FfnMode.DENSE), self.caches)
        finally:
            for hook in hooks:
                hook.remove()
        neurons = self.decoder.config.num_neurons
        tokens, kept, union, neuron_bytes, predictor_bytes = map(sum, zip(*found, strict=True))
        share = union / len(found) / neurons
        return Seen(
            tokens, kept / tokens / neurons, share, neuron_bytes, share * neuron_bytes,
            predictor_bytes,
        )  # fmt: skip

    def bytes(self, seen: Seen, *, skips: bool, budget: int | None = None) -> float:
        """What the step must read: weights once, of the neurons the union if it skips the others,
        every K and V, or every summary and those of the budget, and of the embeddings a row a
        token."""
        decoder = self.decoder
        other = sum(
            _bytes(parameter)
            for name, parameter in decoder.named_parameters()
            if name != "embedding" and (".ffn." not in name or ".router." in name)
        )
        if decoder.lm_head is None:
            other += _bytes(decoder.embedding)
        width, tokens = decoder.embedding.element_size(), self.context
        if budget is not None and budget < tokens:
            tokens = budget + tokens // self.page_size  # a summary is as large as a token's K and V
        kv = self.size * tokens * decoder.config.kv_bytes_per_token * width
        neurons = seen.union_bytes if skips else seen.neuron_bytes
        return other + kv + seen.predictor_bytes + neurons


def caches(
    decoder: Decoder, num_pages: int, page_size: int = PAGE_SIZE, *, summaries: bool = False
) -> list[LayerCache]:
    """Empty pages for every layer, as the engine has them."""
    like = decoder.embedding
    place = like.device, like.dtype
    return kv_cache.allocate(decoder.config, num_pages, page_size, *place, summaries=summaries)


def _fill(cache: LayerCache) -> None:
    """Random keys and values, in place, with the summaries of those keys."""
    cache.k.normal_()
    cache.v.normal_()
    if cache.summary is not None:
        torch.amin(cache.k, 2, out=cache.summary[:, :, 0])
        torch.amax(cache.k, 2, out=cache.summary[:, :, 1])


@contextmanager
def random_gates(decoder: Decoder, rank: int) -> Iterator[None]:
    """Every layer's attention has a gate of this rank meanwhile; its weights are random."""
    attentions, like = [attention_of(layer) for layer in decoder.layers], decoder.embedding
    for attention in attentions:
        gate = gates.empty(decoder.config, rank).to(like.device, like.dtype)
        for parameter in gate.parameters():
            parameter.normal_(0.0, parameter.shape[1] ** -0.5)
        attention.gate = gate
    try:
        yield
    finally:
        for attention in attentions:
            attention.gate = None


def decode_batch(
    ids: Tensor,
    positions: Tensor | int,
    tables: Tensor,
    mode: FfnMode,
    page_size: int = PAGE_SIZE,
) -> ForwardBatch:
    """One token ids [B] for each request, at its position [B] or at one for all, on page tables
    [B, pages]."""
    rows = torch.arange(len(ids), device=ids.device)
    last = positions.tolist() if isinstance(positions, Tensor) else [positions] * len(ids)
    positions = positions + torch.zeros_like(rows)
    pages = tables[rows, positions // page_size].long()
    return ForwardBatch(
        token_ids=ids,
        positions=positions,
        slots=pages * page_size + positions % page_size,
        request_ids=rows,
        page_tables=tables,
        query_lens=(1,) * len(ids),
        context_lens=tuple(position + 1 for position in last),
        sample_at=rows,
        ffn_mode=mode,
    )


def _look(ffn: nn.Module, x: Tensor, residual: Tensor) -> list[tuple[int, int, int, int, int]]:
    """Of each FFN that a token reached: tokens, neurons kept by each, by any, bytes of the neurons
    and of what chooses them."""
    found: list[tuple[int, int, int, int, int]] = []
    for block, places in blocks(ffn, x):
        if not len(places):
            continue
        parts = {name: _bytes(p) for name, p in block.named_parameters()}
        predictor = sum(size for name, size in parts.items() if name.startswith("predictor."))
        mask = torch.ones(len(places), block.gate_up.shape[0], dtype=torch.bool)
        if isinstance(block, SparseFFN) and block.predictor is not None:
            mask = block.predictor.select(residual[places], x[places])
        elif isinstance(block, SparseFFN):
            mask, predictor = _opened(block, x[places]), parts["gate_up"] // 2
        kept, union = int(mask.sum()), int(mask.any(0).sum())
        found.append((len(places), kept, union, sum(parts.values()) - predictor, predictor))
    return found


def _opened(ffn: SparseFFN, x: Tensor) -> Tensor:
    """The neurons [T, N] bool whose gate is not shut: without a predictor they are computed."""
    gate = reference.linear(x, ffn.gate_up[:, : x.shape[1]])
    return reference.activate(gate, torch.ones_like(gate), ffn.activation, ffn.threshold) != 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of REPLAYS runs: between two events on a GPU, by the clock on a CPU."""
    return medians([run], device)[0]


def medians(runs: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Of each of several runs, which take turns: whatever slows one down slows them all."""
    turns = list(runs) * (WARM_UP + REPLAYS)
    times = _event_seconds(turns) if device.type == "cuda" else _clock_seconds(turns)
    settled = times[WARM_UP * len(runs) :]
    return [statistics.median(settled[i :: len(runs)]) for i in range(len(runs))]


def _clock_seconds(turns: Sequence[Callable[[], object]]) -> list[float]:
    marks = [time.perf_counter()]
    for run in turns:
        run()
        marks.append(time.perf_counter())
    return [end - start for start, end in pairwise(marks)]


def _event_seconds(turns: Sequence[Callable[[], object]]) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(turns) + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for run, mark in zip(turns, marks[1:], strict=True):
        run()
        mark.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(marks)]
