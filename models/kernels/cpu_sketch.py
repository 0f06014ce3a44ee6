"""CPU kernel: the scores of packed rows, each unpacked once for all tokens and never in memory."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_jit import bools, floats, ints, kernel
from .cpu_matmul import ROWS, multiply

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
        for first in range(begin, end, TOGETHER):
            count = min(TOGETHER, end - first)
            for i in range(count * num_rows):
                n, r = first + i // num_rows, i % num_rows
                _unpack(codes[n, r], scales[n, r], rows[i])
            multiply(x, rows, 0, count * num_rows, scores, 0)
            for t in range(num_tokens):
                threshold = thresholds[t % len(thresholds), 0]
                for i in range(count):
                    kept = scores[t, i * num_rows] > threshold
                    for r in range(1, num_rows):
                        kept &= scores[t, i * num_rows + r] > threshold
                    mask[t, first + i] = kept


@njit
def _unpack(words, scales, out):
    """words [bits, W], scales [groups] -> out [32 * W]."""
    bits, width = words.shape
    units = np.empty(width, np.float32)
    for g in range(len(scales)):
        units[g * width // len(scales) : (g + 1) * width // len(scales)] = scales[g]
    per_word, middle = 32 // bits, np.float32((1 << bits) - 1) / np.float32(2)
    for p in range(bits):
        word = words[p]
        for s in range(per_word):
            slot = p * per_word + s
            row, shift = out[slot * width : (slot + 1) * width], np.int32(s * bits)
            for j in range(width):
                number = (word[j] >> shift) & np.int32((1 << bits) - 1)
                row[j] = (np.float32(number) - middle) * units[j]
    if bits == 3:
        for slot in (30, 31):
            row, word = out[slot * width : (slot + 1) * width], words[2 * slot - 60]
            for j in range(width):
                low, high = (word[j] >> 30) & 3, (words[1, j] >> slot) & 1
                row[j] = (np.float32(low | high << 2) - middle) * units[j]
