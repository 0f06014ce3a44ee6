"""The attention that a model's pages really get, and how far an estimate is from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import Attention, LayerCache
from ..batch import ForwardBatch
from ..decoder import Decoder
from ..kernels import reference
from ..kernels.reference_pages import Gate, probe
from ..layers import Norm
from ..sequence import sequence_batch, sequence_cache
from ..sparsity.gates import attention_of


@dataclass(frozen=True, slots=True)
class Seen:
    """Queries [T, H, D] and keys [T, K, D] of one layer on one window, rotated, in fp32."""

    q: Tensor
    k: Tensor
    scale: float
    window: int | None  # of the layer's attention

    def summary(self, page_size: int) -> Tensor:
        """Of the pages that the window fills: [P, K, 2, D]."""
        return summary_of(self.k, page_size)

    def mass(self, places: Tensor, page_size: int) -> Tensor:
        """What each page gets of each head's attention at `places` [S]: [S, H, pages] that add up
        to one, the page that a token stands in among them."""
        num_tokens, num_kv_heads = self.k.shape[:2]
        grouped = self.q[places].view(len(places), num_kv_heads, -1, self.q.shape[2])
        scores = torch.einsum("skgd,tkd->skgt", grouped, self.k).flatten(1, 2) * self.scale
        distance = places[:, None] - torch.arange(num_tokens, device=places.device)
        seen = (distance >= 0) & (distance < (self.window or num_tokens))
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        missing = -num_tokens % page_size
        whole = nn.functional.pad(weights, (0, missing))
        return whole.view(*whole.shape[:2], -1, page_size).sum(-1)


def summary_of(k: Tensor, page_size: int) -> Tensor:
    """Of the pages that keys [..., T, K, D] fill: [..., P, K, 2, D]."""
    num_pages = k.shape[-3] // page_size
    shape = (*k.shape[:-3], num_pages, page_size, *k.shape[-2:])
    pages = k[..., : num_pages * page_size, :, :].reshape(shape)
    return torch.stack((pages.amin(-3), pages.amax(-3)), -2)


def look(decoder: Decoder, ids: Tensor, threshold: float | None = None) -> list[Seen]:
    """Every layer's queries and keys on one window of ids [T], under `sequence.observe`'s
    threshold."""
    found: list[Seen] = []
    attentions = [attention_of(layer) for layer in decoder.layers]
    hooks = [one.register_forward_pre_hook(_watch(one, found)) for one in attentions]
    try:
        with torch.no_grad():
            batch = sequence_batch(ids, threshold=threshold)
            decoder.hidden(batch, sequence_cache(decoder, len(ids)))
    finally:
        for hook in hooks:
            hook.remove()
    return found


Inputs = tuple[Tensor, Norm, tuple[Tensor, Tensor], LayerCache, ForwardBatch]  # of attention


def _watch(attention: Attention, found: list[Seen]) -> Callable[[nn.Module, Inputs], None]:
    """A hook that keeps the queries and keys that attention makes of its inputs."""

    def watch(_: nn.Module, args: Inputs) -> None:
        residual, norm, (cos, sin), cache, batch = args
        num_kv_heads, head_dim = cache.k.shape[1], cache.k.shape[3]
        qkv = attention.ops.norm_linear(residual, norm.weight, norm.eps, attention.qkv.weight)
        heads = qkv.view(len(qkv), -1, head_dim)[:, :-num_kv_heads]
        rotated = reference.rotate(heads, cos[batch.positions], sin[batch.positions]).float()
        q, k = rotated[:, :-num_kv_heads], rotated[:, -num_kv_heads:]
        found.append(Seen(q, k, attention.scale, attention.window))

    return watch


def divergence(seen: Seen, gate: Gate | None, places: Tensor, page_size: int) -> Tensor:
    """KL(true || estimated) over the complete pages that each of `places` [S] sees, mean over them
    and the heads: a scalar that gradients flow back from."""
    summary = seen.summary(page_size)
    complete = complete_pages(places, len(summary), page_size, seen.window)[:, None]
    true = seen.mass(places, page_size)[..., : len(summary)].masked_fill(~complete, 0)
    true = true / true.sum(-1, keepdim=True).clamp(min=1e-30)
    probes = probe(seen.q[places], gate, torch.ones(len(places), device=places.device))
    grouped = probes.view(len(places), summary.shape[1], -1, probes.shape[2])
    scores = torch.einsum("skgf,pkf->skgp", grouped, summary.flatten(2)).flatten(1, 2) * seen.scale
    estimated = scores.masked_fill(~complete, -torch.inf).log_softmax(-1).masked_fill(~complete, 0)
    return (true * (true.clamp(min=1e-30).log() - estimated)).sum(-1).mean()


def complete_pages(places: Tensor, num_pages: int, page_size: int, window: int | None) -> Tensor:
    """Which pages lie before the one that each place is in, and are seen from it: [S, P] bool."""
    pages = torch.arange(num_pages, device=places.device)
    before = pages < places[:, None] // page_size
    if window is None:
        return before
    return before & (pages >= (places[:, None] + 1 - window).clamp(min=0) // page_size)


def sample_places(num: int, length: int, page_size: int, seed: tuple[int, ...]) -> Tensor:
    """Where to look in a window: [S] int64, never where there is nothing to choose yet."""
    generator = torch.Generator().manual_seed(hash(seed) % 2**63)
    return torch.randint(min(4 * page_size, length - 1), length, (num,), generator=generator)
