"""CPU kernels: rotary embedding, writing K/V to its pages, attention over them."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_matmul import dot
from .cpu_simd import exp


@njit(cache=True, nogil=True)
def rotate_and_store(qkv, cos, sin, k_cache, v_cache, positions, slots, q):
    """Heads as [.., 2, D/2]: the two halves that a rotation mixes."""
    num_tokens, num_heads, _, half = q.shape
    _, num_kv_heads, page_size, _, _ = k_cache.shape
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


@njit(cache=True, parallel=True, nogil=True)
def attend(q, keys, values, page_size, requests, page_tables, positions, scale, window, out):
    """q, out [T, K, H/K, D]; keys, values [pages * K * page_size, D], a page's head contiguous.

    One page after the other, the sums rescaled whenever a larger score turns up.
    """
    num_tokens, num_kv_heads, group, head_dim = q.shape
    queries = q.reshape(-1, head_dim)
    for work in prange(num_tokens * num_kv_heads):
        t, kv_head = work // num_kv_heads, work % num_kv_heads
        end = positions[t] + 1
        begin = max(0, end - window)
        weights = np.empty(page_size, np.float32)
        total = np.zeros((group, head_dim), np.float32)
        peak = np.full(group, -np.inf, np.float32)
        norm = np.zeros(group, np.float32)
        for column in range(begin // page_size, (end + page_size - 1) // page_size):
            first = (page_tables[requests[t], column] * num_kv_heads + kv_head) * page_size
            low = max(0, begin - column * page_size)
            high = min(page_size, end - column * page_size)
            for g in range(group):
                top = peak[g]
                for j in range(low, high):
                    score = dot(queries, (work * group + g,), keys, (first + j,))[0] * scale
                    weights[j] = score
                    top = max(top, score)
                decay = exp(peak[g] - top)
                peak[g] = top
                for j in range(low, high):
                    weights[j] = exp(weights[j] - top)
                norm[g] *= decay
                for d in range(head_dim):
                    total[g, d] *= decay
                for j in range(low, high):
                    norm[g] += weights[j]
                    weight, place = weights[j], first + j
                    for d in range(head_dim):
                        total[g, d] += weight * values[place, d]
        for g in range(group):
            for d in range(head_dim):
                out[t, kv_head, g, d] = total[g, d] / norm[g]
