"""CPU kernel: one token for each row of logits."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_jit import doubles, floats, kernel, longs
from .cpu_simd import dot, exp, largest

BLOCK = 256  # weights that are added up at once when looking for the token
CHUNK = 32  # weights of which the largest is taken when looking for the top k


@kernel()
def draw(
    logits_at,
    temperature_at,
    points_at,
    top_k_at,
    top_p_at,
    min_p_at,
    token_ids_at,
    num_rows,
    num_tokens,
):
    """`reference.draw`; limits at address 0 are none."""
    rows, limited = (num_rows,), (num_rows if top_k_at else 0,)
    _draw(
        floats(logits_at, (num_rows, num_tokens)),
        floats(temperature_at, rows),
        doubles(points_at, rows),
        longs(top_k_at, limited),
        floats(top_p_at, limited),
        floats(min_p_at, limited),
        longs(token_ids_at, rows),
    )


@njit(parallel=True)
def _draw(logits, temperature, points, top_k, top_p, min_p, token_ids):
    num_rows, num_tokens = logits.shape
    ones = np.ones((1, BLOCK), np.float32)
    for r in prange(num_rows):
        blocks = np.zeros(((num_tokens + BLOCK - 1) // BLOCK, BLOCK), np.float32)
        weights = blocks.reshape(-1)[:num_tokens]
        top, scale = largest(logits[r]), np.float32(1) / temperature[r]
        for i in range(num_tokens):
            weights[i] = exp((logits[r, i] - top) * scale)
        if len(top_k):
            least = _least(weights, top_k[r], top_p[r], min_p[r])
            for i in range(num_tokens):
                weights[i] = weights[i] if weights[i] >= least else np.float32(0)
        sums = np.empty(len(blocks), np.float32)
        for b in range(len(blocks)):
            sums[b] = dot(blocks, b, ones, 0)
        token_ids[r] = _find(blocks, sums, points[r])


@njit
def _nth_largest(weights, n):
    """Looked for only among what reaches the n-th largest of the chunks' own largest."""
    num_chunks, bound = (len(weights) + CHUNK - 1) // CHUNK, np.float32(0)
    if n <= num_chunks:
        tops = np.empty(num_chunks, np.float32)
        for c in range(num_chunks):
            tops[c] = largest(weights[c * CHUNK : (c + 1) * CHUNK])
        bound = _sorted_from(tops, np.float32(0))[num_chunks - n]
    candidates = _sorted_from(weights, bound)
    return candidates[len(candidates) - n]


@njit
def _least(weights, top_k, top_p, min_p):
    """The smallest weight that top-k, min-p and, of what they leave, top-p keep."""
    least = min_p  # the largest weight is 1
    if top_k < len(weights):
        least = max(least, _nth_largest(weights, top_k))
    if top_p < 1:
        mass = 0.0
        for i in range(len(weights)):
            mass += weights[i] if weights[i] >= least else np.float32(0)
        # All that is smaller than this adds up to less than what top-p leaves out.
        negligible = np.float32((1 - top_p) * mass / len(weights))
        candidates = _sorted_from(weights, max(least, negligible))
        reached = 0.0
        for i in range(len(candidates) - 1, -1, -1):
            if reached >= top_p * mass and reached > 0:
                break
            least = candidates[i]
            reached += least
    return least


@njit
def _sorted_from(values, bound):
    """Those that are not below the bound, ascending: Shell's sort, for numba takes seconds over its
    own, and few are left."""
    found = np.empty(len(values), np.float32)
    count = 0
    for i in range(len(values)):
        if values[i] >= bound:
            found[count] = values[i]
            count += 1
    gap = 1
    while 3 * gap < count:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            value, j = found[i], i
            while j >= gap and found[j - gap] > value:
                found[j] = found[j - gap]
                j -= gap
            found[j] = value
        gap //= 3
    return found[:count]


@njit
def _find(blocks, sums, point):
    """The first weight whose cumulated sum exceeds point * total."""
    total = 0.0
    for b in range(len(sums)):
        total += sums[b]
    target, reached, found = point * total, 0.0, 0
    for b in range(len(sums)):
        if reached + sums[b] > target:
            for i in range(blocks.shape[1]):
                if blocks[b, i] > 0:
                    found = b * blocks.shape[1] + i
                    reached += blocks[b, i]
                    if reached > target:
                        break
            return found
        reached += sums[b]
    return found
