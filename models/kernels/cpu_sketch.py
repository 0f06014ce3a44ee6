"""CPU kernel: the scores of packed rows, each unpacked once for all tokens and never in memory."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_jit import bools, floats, ints, kernel
from .cpu_matmul import ROWS, multiply
from .cpu_simd import unpacking

_unpack_3, _unpack_4 = unpacking(3), unpacking(4)
TOGETHER = 4  # neurons that are unpacked before they are multiplied: they stay in the cache


@kernel()
def sketch(
    x_at, codes_at, scales_at, thresholds_at, is_one, mask_at, num_tokens, shape, num_groups
):
    """`reference.sketch`; shape is that of codes, [N, R, bits, W]."""
    num_neurons, num_rows, _, width = shape
    x, codes = floats(x_at, (num_tokens, 32 * width)), ints(codes_at, shape)
    scales = floats(scales_at, (num_neurons, num_rows, num_groups))
    thresholds = floats(thresholds_at, (1 if is_one else num_tokens, 1))
    _sketch(x, codes, scales, thresholds, bools(mask_at, (num_tokens, num_neurons)))


@njit(parallel=True)
def _sketch(x, codes, scales, thresholds, mask):
    """thresholds [T, 1], or [1, 1] for all tokens."""
    (num_tokens, num_neurons), num_rows = mask.shape, codes.shape[1]
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(num_neurons, begin + ROWS)
        rows = np.empty((TOGETHER * num_rows, x.shape[1]), np.float32)
        scores = np.empty((num_tokens, TOGETHER * num_rows), np.float32)
        units = np.empty(codes.shape[3], np.float32)
        for first in range(begin, end, TOGETHER):
            count = min(TOGETHER, end - first)
            for i in range(count * num_rows):
                n, r = first + i // num_rows, i % num_rows
                _repeat(scales[n, r], units)
                if codes.shape[2] == 3:
                    _unpack_3(codes[n, r], units, rows[i])
                else:
                    _unpack_4(codes[n, r], units, rows[i])
            multiply(x, rows, 0, count * num_rows, scores, 0)
            for t in range(num_tokens):
                threshold = thresholds[t % len(thresholds), 0]
                for i in range(count):
                    kept = scores[t, i * num_rows] > threshold
                    for r in range(1, num_rows):
                        kept &= scores[t, i * num_rows + r] > threshold
                    mask[t, first + i] = kept


@njit
def _repeat(scales, units):
    """Each place's scale."""
    each = len(units) // len(scales)
    for g in range(len(scales)):
        for i in range(each):  # a slice for each group takes longer than all the rest
            units[g * each + i] = scales[g]
