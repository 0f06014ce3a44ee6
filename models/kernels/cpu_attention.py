"""CPU kernels: rotary embedding, writing K/V to its pages, attention over them."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_jit import floats, ints, kernel, longs
from .cpu_simd import ask_for, dot, exp, largest, row_sum, tile

KEYS = 8  # to a tile
_scores = tile(1, KEYS)
_add_one, _add_eight = row_sum(1), row_sum(8)


@kernel()
def rotate_and_store(
    qkv_at, cos_at, sin_at, k_at, v_at, positions_at, slots_at, q_at, shape, kv_shape, num_positions
):
    """shape: (T, H, D) of q; kv_shape: (pages, K, page_size, D) of each cache.

    Heads are taken as [2, D/2]: the two halves that a rotation mixes.
    """
    num_tokens, num_heads, head_dim = shape
    num_pages, num_kv_heads, page_size, _ = kv_shape
    half = head_dim // 2
    qkv = floats(qkv_at, (num_tokens, num_heads + 2 * num_kv_heads, 2, half))
    q = floats(q_at, (num_tokens, num_heads, 2, half))
    k_cache = floats(k_at, (num_pages, num_kv_heads, page_size, 2, half))
    v_cache = floats(v_at, (num_pages, num_kv_heads, page_size, 2, half))
    cos, sin = floats(cos_at, (num_positions, half)), floats(sin_at, (num_positions, half))
    positions, slots = longs(positions_at, (num_tokens,)), longs(slots_at, (num_tokens,))
    for t in range(num_tokens):
        position = positions[t]
        page, offset = slots[t] // page_size, slots[t] % page_size
        for head in range(num_heads):
            for d in range(half):
                a, b = qkv[t, head, 0, d], qkv[t, head, 1, d]
                q[t, head, 0, d] = a * cos[position, d] - b * sin[position, d]
                q[t, head, 1, d] = b * cos[position, d] + a * sin[position, d]
        for head in range(num_kv_heads):
            key, value = num_heads + head, num_heads + num_kv_heads + head
            for d in range(half):
                a, b = qkv[t, key, 0, d], qkv[t, key, 1, d]
                k_cache[page, head, offset, 0, d] = a * cos[position, d] - b * sin[position, d]
                k_cache[page, head, offset, 1, d] = b * cos[position, d] + a * sin[position, d]
                v_cache[page, head, offset, 0, d] = qkv[t, value, 0, d]
                v_cache[page, head, offset, 1, d] = qkv[t, value, 1, d]


@kernel()
def attend(
    q_at,
    k_at,
    v_at,
    requests_at,
    tables_at,
    positions_at,
    columns_at,
    counts_at,
    out_at,
    shape,
    kv_shape,
    tables_shape,
    scale,
    window,
):
    """shape: (T, H, D) of q; kv_shape: (pages, K, page_size, D); tables_shape: (B, pages).

    columns [T, K, pages] and counts [T, K] name the pages that are read: 0 of them is all, and an
    address of 0 is all for everybody.
    """
    num_tokens, num_heads, head_dim = shape
    num_pages, num_kv_heads, page_size, _ = kv_shape
    groups = (num_tokens, num_kv_heads, num_heads // num_kv_heads, head_dim)
    rows = (num_pages * num_kv_heads * page_size, head_dim)
    chosen = (num_tokens if counts_at else 0, num_kv_heads)
    _attend(
        floats(q_at, groups),
        floats(k_at, rows),
        floats(v_at, rows),
        page_size,
        longs(requests_at, (num_tokens,)),
        ints(tables_at, tables_shape),
        longs(positions_at, (num_tokens,)),
        ints(columns_at, (chosen[0], num_kv_heads, tables_shape[1])),
        ints(counts_at, chosen),
        np.float32(scale),
        window,
        floats(out_at, groups),
    )


@njit(parallel=True)
def _attend(
    q,
    keys,
    values,
    page_size,
    requests,
    page_tables,
    positions,
    columns,
    counts,
    scale,
    window,
    out,
):
    num_tokens, num_kv_heads = q.shape[:2]
    for work in prange(num_tokens * num_kv_heads):
        t, kv_head = work // num_kv_heads, work % num_kv_heads
        pages, end = page_tables[requests[t]], positions[t] + 1
        queries, total = q[t, kv_head], out[t, kv_head]
        begin, step = max(0, end - window), num_kv_heads * page_size
        if len(counts) and counts[t, kv_head]:
            chosen = columns[t, kv_head, : counts[t, kv_head]]
        else:
            chosen = np.arange(begin // page_size, (end - 1) // page_size + 1, dtype=np.int32)
        _attend_to(
            queries, keys, values, pages, chosen, page_size, step, kv_head, begin, end, scale, total
        )


@njit(error_model="numpy")  # Python's division looks for zeros, one by one
def _attend_to(
    queries, keys, values, pages, chosen, page_size, step, kv_head, begin, end, scale, total
):
    """The queries [H/K, D] of one token over the positions from begin to end that lie in the chosen
    columns of its table, page by page.

    `step` rows of keys lie between two pages. Sums are rescaled whenever a larger score turns up.
    """
    group = len(queries)
    weights, ones = np.empty((group, page_size), np.float32), np.ones((1, page_size), np.float32)
    peak, norm = np.full(group, -np.inf, np.float32), np.zeros(group, np.float32)
    total[:] = 0
    for i in range(len(chosen)):
        column, upcoming = chosen[i], chosen[min(i + 1, len(chosen) - 1)]
        start = pages[column] * step + kv_head * page_size
        _ask_for_page(keys, values, pages[upcoming] * step + kv_head * page_size, page_size)
        low = max(0, begin - column * page_size)
        num_keys = min(page_size, end - column * page_size) - low
        first, stop = start + low, start + low + num_keys
        weights[:, num_keys:] = 0
        for j in range(first, stop, KEYS):
            for g in range(group):
                _scores(weights, first, queries, None, g, keys, j, stop, j + KEYS)
        for g in range(group):
            row = weights[g, :num_keys]
            top = max(peak[g], scale * largest(row))
            for j in range(num_keys):
                row[j] = exp(scale * row[j] - top)
            decay = exp(peak[g] - top)
            peak[g] = top
            norm[g] = decay * norm[g] + dot(weights, g, ones, 0)
            _add_values(total[g], decay, row, values, first)
    for g in range(group):
        for d in range(total.shape[1]):
            total[g, d] /= norm[g]


@njit
def _ask_for_page(keys, values, first, page_size):
    for row in range(first, first + page_size):
        ask_for(keys, row)
        ask_for(values, row)


@njit
def _add_values(total, decay, weights, values, first):
    """total = decay * total + sum of weights[j] * values[first + j], in order."""
    for d in range(len(total)):
        total[d] *= decay
    num_tiled = len(weights) // 8 * 8
    for j in range(0, num_tiled, 8):
        w, row = weights[j : j + 8], first + j
        eight = (w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7])
        rows = (row, row + 1, row + 2, row + 3, row + 4, row + 5, row + 6, row + 7)
        _add_eight(total, eight, values, rows, 0)
    for j in range(num_tiled, len(weights)):
        _add_one(total, (weights[j],), values, (first + j,), 0)
