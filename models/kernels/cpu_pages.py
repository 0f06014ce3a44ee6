"""CPU kernels: the summaries of K/V pages, and which pages a token reads: `reference_pages`."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_jit import floats, ints, kernel, longs
from .cpu_simd import dot, exp

INFINITE = 0x7F800000  # the bits of the float that no estimate reaches


@kernel()
def summarize(k_at, summary_at, slots_at, num_tokens, kv_shape):
    """kv_shape: (pages, K, page_size, D) of the keys."""
    num_pages, num_kv_heads, page_size, head_dim = kv_shape
    keys = floats(k_at, kv_shape)
    summary = floats(summary_at, (num_pages, num_kv_heads, 2, head_dim))
    slots = longs(slots_at, (num_tokens,))
    for t in range(num_tokens):
        page, offset = slots[t] // page_size, slots[t] % page_size
        if offset == page_size - 1:
            for head in range(num_kv_heads):
                low, high = summary[page, head]
                low[:], high[:] = keys[page, head, 0], keys[page, head, 0]
                for row in keys[page, head]:
                    for d in range(head_dim):
                        low[d], high[d] = min(low[d], row[d]), max(high[d], row[d])


@kernel()
def choose(
    q_at,
    summary_at,
    query_at,
    key_at,
    requests_at,
    tables_at,
    positions_at,
    budgets_at,
    shares_at,
    gated_at,
    columns_at,
    counts_at,
    shape,
    kv_shape,
    tables_shape,
    rank,
    scale,
    window,
):
    """shape: (T, H, D) of q; kv_shape: (pages, K, page_size, D); tables_shape: (B, P); the gate's
    projections are of this rank, 0: there is none."""
    num_tokens, num_heads, head_dim = shape
    num_pages, num_kv_heads, page_size, _ = kv_shape
    group = num_heads // num_kv_heads
    _choose(
        floats(q_at, (num_tokens, num_kv_heads, group, head_dim)),
        floats(summary_at, (num_pages * num_kv_heads, 2 * head_dim)),
        floats(query_at, (num_heads * rank, 2 * head_dim)),
        floats(key_at, (num_kv_heads * 2 * head_dim, rank)),
        page_size,
        longs(requests_at, (num_tokens,)),
        ints(tables_at, tables_shape),
        longs(positions_at, (num_tokens,)),
        ints(budgets_at, (num_tokens,)),
        floats(shares_at, (num_tokens,)),
        floats(gated_at, (num_tokens,)),
        np.float32(scale),
        window,
        ints(columns_at, (num_tokens, num_kv_heads, tables_shape[1])),
        ints(counts_at, (num_tokens, num_kv_heads)),
    )


@njit(parallel=True)
def _choose(
    q,
    summary,
    query,
    key,
    page_size,
    requests,
    page_tables,
    positions,
    budgets,
    shares,
    gated,
    scale,
    window,
    columns,
    counts,
):
    num_tokens, num_kv_heads = q.shape[:2]
    for work in prange(num_tokens * num_kv_heads):
        t, head = work // num_kv_heads, work % num_kv_heads
        counts[t, head] = 0
        if budgets[t] > 0:
            last = positions[t] // page_size
            first = max(0, positions[t] + 1 - window) // page_size
            pages = page_tables[requests[t], first:last]
            probes = _probes(q[t, head], query, key, head, gated[t])
            mass = _estimate(probes, summary, pages, head, num_kv_heads, scale)
            counts[t, head] = _keep(mass, budgets[t], shares[t], first, columns[t, head])


@njit
def _probes(queries, query, key, head, gated):
    """What summaries are multiplied by, for the queries [G, D] of one K/V head: [G, 2D]."""
    group, head_dim = queries.shape
    rank = key.shape[1]
    probes, hidden = np.empty((group, 2 * head_dim), np.float32), np.empty((1, rank), np.float32)
    for g in range(group):
        for d in range(head_dim):
            probes[g, d] = min(queries[g, d], np.float32(0))
            probes[g, head_dim + d] = max(queries[g, d], np.float32(0))
        if rank > 0 and gated > 0:
            for i in range(rank):
                hidden[0, i] = dot(query, (head * group + g) * rank + i, probes, g)
            for f in range(2 * head_dim):
                probes[g, f] += gated * dot(key, head * 2 * head_dim + f, hidden, 0)
    return probes


@njit(error_model="numpy")
def _estimate(probes, summary, pages, head, num_kv_heads, scale):
    """The share of the group's attention that each of the pages is thought to get."""
    group, num_pages = len(probes), len(pages)
    mass, scores = np.zeros(num_pages, np.float32), np.empty(num_pages, np.float32)
    for g in range(group):
        peak, total = np.float32(-np.inf), np.float32(0)
        for p in range(num_pages):
            scores[p] = scale * dot(probes, g, summary, pages[p] * num_kv_heads + head)
            peak = max(peak, scores[p])
        for p in range(num_pages):
            scores[p] = exp(scores[p] - peak)
            total += scores[p]
        for p in range(num_pages):
            mass[p] += scores[p] / (total * np.float32(group))
    return mass


@njit
def _keep(mass, budget, share, first, columns):
    """Write the columns of the pages that are read, ascending, the token's own last; how many.

    Estimates are not negative, so the order of their bits is theirs, and the least of them that is
    kept is found bit by bit.
    """
    num_pages, num_kept = len(mass), 0
    room = min(budget - 1, num_pages)
    bits = mass.view(np.int32)
    least, above = 0, INFINITE
    while above - least > 1 and (room < num_pages or share < 1):
        middle = (least + above) // 2
        count, total = 0, np.float32(0)
        for p in range(num_pages):
            if bits[p] >= middle or p == 0 or p == num_pages - 1:
                count += 1
                total += mass[p]
        if count >= room or (share < 1 and total >= share):
            least = middle
        else:
            above = middle
    num_equal = room
    for p in range(num_pages):
        num_equal -= bits[p] > least or p == 0 or p == num_pages - 1
    for p in range(num_pages):
        kept = bits[p] > least or p == 0 or p == num_pages - 1
        if not kept and bits[p] == least and num_equal > 0:
            num_equal -= 1
            kept = True
        if kept:
            columns[num_kept] = first + p
            num_kept += 1
    columns[num_kept] = first + num_pages
    return num_kept + 1
