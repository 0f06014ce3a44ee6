"""One whole sequence through a decoder, for whoever measures a model. Knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .attention import LayerCache
from .batch import FfnMode, ForwardBatch, PageBudgets
from .decoder import Decoder
from .layers import Norm


@dataclass(frozen=True, slots=True)
class Observed:
    """What T tokens of one sequence did."""

    logits: Tensor  # [T, vocab] float32
    ffn_inputs: list[tuple[Tensor, Tensor]]  # per layer: x and the residual, [T, hidden] each
    active: Tensor  # [layers] float32, the active fraction; zero where no neuron can be skipped
    union: Tensor  # [layers] float32, the share that any token of a step computes


@dataclass(frozen=True, slots=True)
class Reads:
    """How much of its context every token reads: pages that the bound, or the gate, chooses."""

    pages: int
    page_size: int
    gated: bool = False

    def budgets(self, num_tokens: int, device: torch.device) -> PageBudgets:
        ones = torch.ones(num_tokens, device=device)
        tokens = torch.arange(num_tokens, device=device)
        return PageBudgets((ones * self.pages).int(), ones, ones * self.gated, tokens=tokens)


@torch.inference_mode()
def observe(
    decoder: Decoder,
    ids: Tensor,
    *,
    mode: FfnMode = FfnMode.DENSE,
    threshold: float | None = None,
    step: int | None = None,
    reads: Reads | None = None,
) -> Observed:
    """Run ids [T] int64 through the decoder over a cache of their own, `step` tokens at a time.

    `threshold` stands instead of its predictors' own: minus infinity keeps every neuron. `reads`
    None: every token reads all of its context.
    """
    inputs: list[list[tuple[Tensor, Tensor]]] = [[] for _ in decoder.layers]
    hooks = [
        layer.get_submodule("ffn").register_forward_pre_hook(_look(decoder, found))
        for layer, found in zip(decoder.layers, inputs, strict=True)
    ]
    page_size = None if reads is None else reads.page_size
    cache, step = sequence_cache(decoder, len(ids), page_size), step or len(ids)
    logits: list[Tensor] = []
    active = torch.zeros(len(decoder.layers), len(ids), device=ids.device)
    union = torch.zeros(len(decoder.layers), device=ids.device)
    starts = range(0, len(ids), step)
    try:
        for start in starts:
            batch = sequence_batch(ids[: start + step], mode, start, threshold, reads)
            here = active[:, start : start + step]
            logits.append(decoder(replace(batch, active=here, union=union), cache))
    finally:
        for hook in hooks:
            hook.remove()
    return Observed(
        torch.cat(logits),
        [_joined(found) for found in inputs],
        active.mean(-1),
        union / len(starts),
    )


def _look(
    decoder: Decoder, found: list[tuple[Tensor, Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, Norm]], None]:
    """A hook that keeps what an FFN is given."""

    def look(_: nn.Module, args: tuple[Tensor, Norm]) -> None:
        residual, norm = args[:2]
        found.append((decoder.ops.rms_norm(residual, norm.weight, norm.eps), residual))

    return look


def _joined(steps: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(steps) == 1:
        return steps[0]
    return torch.cat([x for x, _ in steps]), torch.cat([residual for _, residual in steps])


def random_ids(decoder: Decoder, num_tokens: int) -> Tensor:
    """The same tokens at every call, on the decoder's device, within its context: [T] int64."""
    generator = torch.Generator().manual_seed(0)
    size = (min(num_tokens, decoder.num_positions),)
    ids = torch.randint(0, decoder.config.vocab_size, size, generator=generator)
    return ids.to(decoder.embedding.device)


def sequence_batch(
    ids: Tensor,
    mode: FfnMode = FfnMode.DENSE,
    num_computed: int = 0,
    threshold: float | None = None,
    reads: Reads | None = None,
) -> ForwardBatch:
    """One sequence's tokens from `num_computed` on as one step, on one page, or on as many as they
    choose from; every one's logits are wanted."""
    places = torch.arange(num_computed, len(ids), device=ids.device)
    num_new = len(places)
    num_pages = 1 if reads is None else -(-len(ids) // reads.page_size)
    return ForwardBatch(
        token_ids=ids[num_computed:],
        positions=places,
        slots=places,
        request_ids=torch.zeros_like(places),
        page_tables=torch.arange(num_pages, dtype=torch.int32, device=ids.device)[None],
        query_lens=(num_new,),
        context_lens=(len(ids),),
        sample_at=places - num_computed,
        ffn_mode=mode,
        query_starts=torch.tensor([0, num_new], dtype=torch.int32, device=ids.device),
        thresholds=limits_of(threshold, num_new, ids.device),
        budgets=None if reads is None else reads.budgets(num_new, ids.device),
    )


def limits_of(threshold: float | None, num_tokens: int, device: torch.device) -> Tensor | None:
    """The same threshold for every token: [T] float32; None leaves it to the predictors."""
    return None if threshold is None else torch.full((num_tokens,), threshold, device=device)


def sequence_cache(
    decoder: Decoder, num_tokens: int, page_size: int | None = None
) -> list[LayerCache]:
    """Where and as the decoder computes: one page a layer that holds `num_tokens` tokens, or pages
    of `page_size` with their summaries."""
    config, like = decoder.config, decoder.embedding
    size = page_size or num_tokens
    shape = (-(-num_tokens // size), config.num_kv_heads, size, config.head_dim)
    parts = (shape, shape) if page_size is None else (shape, shape, (*shape[:2], 2, shape[3]))
    return [LayerCache(*map(like.new_empty, parts)) for _ in decoder.layers]
