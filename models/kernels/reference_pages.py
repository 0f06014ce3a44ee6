"""The meaning of page selection: which pages a token reads, and attention over them alone.

Letters as in `reference`; P pages of a request's table, G = H / K query heads to a K/V head.
A page's summary is the smallest and the largest value of each dimension of its keys. It is written
once, by the step that fills the page: the page that a token stands in is always read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import ForwardBatch, PageBudgets

Gate = tuple[Tensor, Tensor]  # query [H, r, 2D] and key [K, 2D, r] projections
NUM_FORCED = 3  # pages always read: the first, and the last two, of which one is being filled
MIN_BUDGET = 4  # pages; less would leave nothing to choose


def summarize(k_cache: Tensor, summary: Tensor, slots: Tensor) -> None:
    """Write the summaries of the pages that the tokens in `slots` [T] have filled.

    k_cache [pages, K, page_size, D], summary [pages, K, 2, D].
    """
    page_size = k_cache.shape[2]
    filled = slots[(slots >= 0) & (slots % page_size == page_size - 1)] // page_size
    keys = k_cache[filled]
    summary[filled] = torch.stack((keys.amin(2), keys.amax(2)), 2)


def probe(q: Tensor, gate: Gate | None, gated: Tensor) -> Tensor:
    """What a page's summary is multiplied by to estimate its best score: [T, H, D] -> [T, H, 2D].

    `min(q, 0) . smallest + max(q, 0) . largest` is the bound of Quest (arXiv 2406.10774, eq. 2): no
    key of the page scores higher. A gate adds what it has learned.
    """
    return _signed(q) if gate is None else _signed(q) + learned(q, gate, gated)


def learned(q: Tensor, gate: Gate, gated: Tensor) -> Tensor:
    """The gate's part of it, 0 where `gated` [T] is: [T, H, D] -> [T, H, 2D].

    A product of queries and pooled keys after a projection of each, as in SeerAttention-R (arXiv
    2506.08889), but each head projects its own query, and keys are pooled after their rotation.
    """
    query, key = gate
    num_kv_heads, _, rank = key.shape
    hidden = torch.einsum("thf,hrf->thr", _signed(q), query)
    grouped = hidden.view(len(q), num_kv_heads, -1, rank)
    product = torch.einsum("tkgr,kfr->tkgf", grouped, key).flatten(1, 2)
    return gated[:, None, None].to(q.dtype) * product


def _signed(q: Tensor) -> Tensor:
    return torch.cat((q.clamp(max=0), q.clamp(min=0)), -1)


def estimate(
    probes: Tensor, summary: Tensor, scale: float, complete: Tensor | None = None
) -> Tensor:
    """The share of attention that each of P pages is thought to get: [..., K, P] float32.

    probes [..., H, 2D], summary [..., P, K, 2, D]; of those that are not `complete` [..., P], if
    that is given, none. Each head's estimates are a softmax over the pages, and the heads of a
    group are averaged: the best choice is then the one that most of the group's attention falls on.
    A maximum over heads would spend the group's budget on whichever of them has the largest
    scores, though only differences within a head mean anything.
    """
    keys = summary.flatten(-2).float()
    grouped = probes.view(*probes.shape[:-2], keys.shape[-2], -1, probes.shape[-1]).float()
    scores = torch.einsum("...kgf,...pkf->...kgp", grouped, keys) * scale
    if complete is not None:  # a token of the first page has none at all
        scores = scores.masked_fill(~complete[..., None, None, :], torch.finfo(scores.dtype).min)
    return scores.softmax(-1).mean(-2)


def keep(mass: Tensor, num_pages: int, share: float, complete: Tensor | None = None) -> Tensor:
    """Which of P pages a token reads, besides the one it stands in: [..., K, P] -> the same, bool.

    The first and the last, then the largest: `num_pages` in all, the token's own among them, and
    with a share below 1 no more than reach it. Of equals the earlier page; who is as large as the
    last one that the share needs is kept too. `complete` [..., P] says between which of the pages
    it chooses, all in a row; None: between all.
    """
    pages = torch.arange(mass.shape[-1], device=mass.device)
    if complete is None:
        complete = torch.ones_like(pages, dtype=torch.bool)
    first = complete.int().argmax(-1, keepdim=True)
    last = first + complete.sum(-1, keepdim=True) - 1
    ends = complete & ((pages == first) | (pages == last))
    priority = mass.masked_fill(ends[..., None, :], torch.inf)
    priority = priority.masked_fill(~complete[..., None, :], -torch.inf)
    ordered, order = priority.sort(dim=-1, descending=True, stable=True)
    true_mass = mass.gather(-1, order)
    before = true_mass.cumsum(-1) - true_mass
    wanted = (before < share) | (share >= 1) | (ordered == torch.inf)
    wanted &= ordered > -torch.inf
    least = torch.where(wanted, ordered, torch.inf).amin(-1, keepdim=True)
    wanted = (ordered >= least) & (pages < num_pages - 1)
    return torch.zeros_like(wanted).scatter_(-1, order, wanted)


def choose(
    q: Tensor,
    summary: Tensor,
    gate: Gate | None,
    batch: ForwardBatch,
    budgets: PageBudgets,
    page_size: int,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """The places in its request's table of the pages that each token reads, for each K/V head:
    columns [T, K, P] int32, ascending, and how many of them count [T, K] int32; 0: every page."""
    num_tokens, num_kv_heads = len(q), summary.shape[1]
    shape = (num_tokens, num_kv_heads, batch.page_tables.shape[1])
    columns = torch.zeros(shape, dtype=torch.int32, device=q.device)
    counts = torch.zeros(shape[:2], dtype=torch.int32, device=q.device)
    probes = probe(q, gate, budgets.gated)
    for t in _places(budgets.pages > 0):
        position, budget = int(batch.positions[t]), int(budgets.pages[t])
        last, first = position // page_size, first_page(position, page_size, window)
        pages = batch.page_tables[batch.request_ids[t], first:last].long()
        mass = estimate(probes[t], summary[pages], scale)
        kept = keep(mass, budget, budgets.shares[t].item()) if len(pages) else mass.bool()
        for head in range(num_kv_heads):
            chosen = [*(first + p for p in _places(kept[head])), last]
            counts[t, head] = len(chosen)
            columns[t, head, : len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    return columns, counts


def _places(mask: Tensor) -> list[int]:
    """Where [n] bool is true."""
    return [int(i) for i in mask.nonzero().flatten()]


def first_page(position: int, page_size: int, window: int | None) -> int:
    """The first page of which the token sees a part."""
    return 0 if window is None else max(0, position + 1 - window) // page_size


def attend_chosen(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    columns: Tensor,
    counts: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
    out: Tensor,
) -> None:
    """Attention over the chosen pages, written over the rows of out [T, H, D] that have any."""
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    for t in _places(counts.any(1)):
        table, position = batch.page_tables[batch.request_ids[t]], batch.positions[t]
        for head, queries in enumerate(q[t].view(num_kv_heads, -1, head_dim)):
            chosen = columns[t, head, : counts[t, head]].long()
            at = chosen[:, None] * page_size + torch.arange(page_size, device=q.device)
            distance = position - at.flatten()
            seen = (distance >= 0) & (distance < (window or position + 1))
            pages = table[chosen].long()
            k, v = (c[pages, head].flatten(0, 1)[seen].float() for c in (k_cache, v_cache))
            weights = (queries.float() @ k.T * scale).softmax(-1)
            group = slice(head * len(queries), (head + 1) * len(queries))
            out[t, group] = (weights @ v).to(out.dtype)


def add_shares(
    budgets: PageBudgets, counts: Tensor, batch: ForwardBatch, page_size: int, window: int | None
) -> None:
    """Add the share of its pages that each token with a budget reads, where that is wanted."""
    if budgets.read is None:
        return
    last = batch.positions // page_size
    first = 0 if window is None else (batch.positions + 1 - window).clamp(min=0) // page_size
    budgets.read.add_(counts.float().mean(1) / (last - first + 1))
