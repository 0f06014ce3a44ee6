"""Decode steps of our own model, without HTTP and without the engine's loop: one token for each of
some requests of equal length, as the captured graph that the engine replays, or eagerly where there
is none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from turbosparse.engine.graphs import DecodeGraphs, can_capture
from turbosparse.models.attention import LayerCache
from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.decoder import Decoder
from turbosparse.models.layers import Norm
from turbosparse.models.random_weights import blocks
from turbosparse.models.sequence import random_ids
from turbosparse.models.sparsity.ffn import SparseFFN
from turbosparse.models.sparsity.policy import FfnPolicy

PAGE_SIZE = 16  # the engine's
WARM_UP, REPLAYS = 3, 30


@dataclass(frozen=True, slots=True)
class Seen:
    """What one step reads: a layer's FFNs that any token reached, with the neurons they need."""

    tokens: int  # pairs of a token and an FFN
    active: float  # mean share of the neurons that a token keeps
    union: float  # share of those FFNs' neurons that any token keeps
    neuron_bytes: float  # of those FFNs, all neurons
    union_bytes: float  # of those FFNs, the neurons that any token keeps
    predictor_bytes: float


class Step:
    """`size` requests of `context` tokens each, over random K and V."""

    def __init__(self, decoder: Decoder, size: int, context: int) -> None:
        self.decoder, self.size, self.context = decoder, size, context
        width = -(-context // PAGE_SIZE)
        self.caches = caches(decoder, size * width)
        for cache in self.caches:
            cache.k.normal_()
            cache.v.normal_()
        tables = torch.randperm(size * width).view(size, width).int()
        tables = tables.to(decoder.embedding.device)
        ids = random_ids(decoder, size)
        self.batch = decode_batch(ids, context - 1, tables, FfnMode.DENSE)

    def runner(self, mode: FfnMode) -> Callable[[], Tensor]:
        """A function that runs the step in this mode and returns its logits [size, vocab]."""
        batch = replace(self.batch, ffn_mode=mode)
        if not can_capture(self.decoder):
            return lambda: self.decoder(batch, self.caches)
        graphs = DecodeGraphs(
            self.decoder,
            self.caches,
            FfnPolicy.always(mode),
            max_tokens=self.size,
            max_pages=batch.page_tables.shape[1],
        )
        graphs.capture(only=self.size)

        def run() -> Tensor:
            logits = graphs.run(batch)
            assert logits is not None, f"no graph for {self.size} tokens"
            return logits

        return run

    def seconds(self, mode: FfnMode) -> float:
        """Median time of a step, one after the other as fast as they go."""
        return median_seconds(self.runner(mode), self.decoder.embedding.device)

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
            self.decoder(self.batch, self.caches)
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

    def bytes(self, seen: Seen, *, skips: bool) -> float:
        """What the step must read: weights once, of the neurons the union if it skips the others,
        every K and V, and of the embeddings a row a token."""
        decoder = self.decoder
        other = sum(
            _bytes(parameter)
            for name, parameter in decoder.named_parameters()
            if name != "embedding" and (".ffn." not in name or ".router." in name)
        )
        if decoder.lm_head is None:
            other += _bytes(decoder.embedding)
        width = decoder.embedding.element_size()
        kv = self.size * self.context * decoder.config.kv_bytes_per_token * width
        neurons = seen.union_bytes if skips else seen.neuron_bytes
        return other + kv + seen.predictor_bytes + neurons


def caches(decoder: Decoder, num_pages: int) -> list[LayerCache]:
    """Empty pages for every layer, as the engine has them."""
    config, like = decoder.config, decoder.embedding
    shape = (num_pages, config.num_kv_heads, PAGE_SIZE, config.head_dim)
    return [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in decoder.layers]


def decode_batch(ids: Tensor, position: int, tables: Tensor, mode: FfnMode) -> ForwardBatch:
    """One token ids [B] for each request, all at the same position, on page tables [B, pages]."""
    rows, (page, offset) = torch.arange(len(ids), device=ids.device), divmod(position, PAGE_SIZE)
    return ForwardBatch(
        token_ids=ids,
        positions=torch.full_like(rows, position),
        slots=tables[:, page].long() * PAGE_SIZE + offset,
        request_ids=rows,
        page_tables=tables,
        query_lens=(1,) * len(ids),
        context_lens=(position + 1,) * len(ids),
        sample_at=rows,
        ffn_mode=mode,
    )


def _look(ffn: nn.Module, x: Tensor, residual: Tensor) -> list[tuple[int, int, int, int, int]]:
    """Of each FFN that a token reached: tokens, neurons kept by each, by any, bytes of the neurons
    and of the predictor."""
    found: list[tuple[int, int, int, int, int]] = []
    for block, places in blocks(ffn, x):
        if not len(places):
            continue
        parts = {name: _bytes(p) for name, p in block.named_parameters()}
        predictor = sum(size for name, size in parts.items() if name.startswith("predictor."))
        mask = torch.ones(len(places), block.gate_up.shape[0], dtype=torch.bool)
        if isinstance(block, SparseFFN) and block.predictor is not None:
            mask = block.predictor.select(residual[places], x[places])
        kept, union = int(mask.sum()), int(mask.any(0).sum())
        found.append((len(places), kept, union, sum(parts.values()) - predictor, predictor))
    return found


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of REPLAYS runs: between two events on a GPU, by the clock on a CPU."""
    if device.type == "cuda":
        return statistics.median(_event_seconds(run))
    times: list[float] = []
    for _ in range(WARM_UP + REPLAYS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times[WARM_UP:])


def _event_seconds(run: Callable[[], object]) -> list[float]:
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(WARM_UP + REPLAYS + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    pairs = zip(marks[WARM_UP:], marks[WARM_UP + 1 :], strict=False)
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]
