"""Long rows that read only the pages their gates choose, while the model is being trained.

The choice is `reference_pages`' own, for all tokens of a row at once, so that what is trained is
what is served. It has no gradient: the model learns to live with it, and the gates learn beside
it from what the attention would have been. Knows no optimizer.
"""
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..kernels.reference_pages import estimate, keep, probe
from ..sparsity.blocks import Gate
from .page_mass import Seen, complete_pages, divergence, summary_of

GATE_ROWS = 4  # of a step, whose attention the gates learn from


@dataclass(slots=True)
class PagedStep:
    """What the rows of one step read; collects how far each layer's gate is off."""

    gates: list[Gate]
    page_size: int
    budget: int  # pages
    rows: Tensor | None  # [B] bool, who reads no more than the budget; None: nobody
    places: Tensor  # [S] int64, tokens whose attention the gates learn from
    losses: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, H, T, D], k and v [B, K, T, D] -> [B, H, T, D]."""
        gate = self.gates[layer]
        with torch.autocast(q.device.type, enabled=False):
            self.losses.append(self._divergence(gate, q.detach().float(), k.detach().float()))
            if self.rows is None:
                return _attend(q, k, v, None, self.page_size)
            pages = pages_read(q, k, gate, self.budget, self.page_size)
            pages |= ~self.rows[:, None, None, None]
            # A mask of tokens is gigabytes: it is made again for the backward pass.
            return checkpoint(_attend, q, k, v, pages, self.page_size, use_reentrant=False)

    def _divergence(self, gate: Gate, q: Tensor, k: Tensor) -> Tensor:
        """Mean over some of the rows, evenly from all sources of them."""
        chosen = range(0, len(q), max(1, len(q) // GATE_ROWS))
        scale = q.shape[-1] ** -0.5
        seen = [Seen(q[i].transpose(0, 1), k[i].transpose(0, 1), scale, None) for i in chosen]
        losses = [divergence(s, gate.projections, self.places, self.page_size) for s in seen]
        return torch.stack(losses).mean()


@torch.no_grad()
def pages_read(q: Tensor, k: Tensor, gate: Gate | None, budget: int, page_size: int) -> Tensor:
    """The pages that each token of each row reads: [B, K, T, pages] bool.

    q [B, H, T, D], k [B, K, T, D]; `budget` in pages.
    """
    batch, num_heads, length, head_dim = q.shape
    queries = q.transpose(1, 2).reshape(-1, num_heads, head_dim).float()
    ones = torch.ones(len(queries), device=q.device)
    projections = None if gate is None else gate.projections
    probes = probe(queries, projections, ones).unflatten(0, (batch, length))
    summary = summary_of(k.transpose(1, 2).float(), page_size)  # [B, P, K, 2, D]
    places = torch.arange(length, device=q.device)
    complete = complete_pages(places, summary.shape[1], page_size, None)
    mass = estimate(probes, summary[:, None], head_dim**-0.5, complete)  # [B, T, K, P]
    kept = keep(mass, budget, 1.0, complete)
    kept = F.pad(kept, (0, -(-length // page_size) - kept.shape[-1]))
    own = (places // page_size)[None, :, None, None].expand(*kept.shape[:3], 1)
    return kept.scatter(-1, own, True).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, pages: Tensor | None, page_size: int) -> Tensor:
    """Causal attention, to `pages` [B, K, T, pages] alone where they are given."""
    length, group = q.shape[2], q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    if pages is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    tokens = pages.repeat_interleave(page_size, -1)[..., :length].tril()
    mask = tokens.repeat_interleave(group, 1)  # [B, H, T, T]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
