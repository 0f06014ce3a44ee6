"""CPU kernels: rows of weights times rows of tokens, and the root-mean-square norm."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_simd import tile

ROWS = 32  # weight rows that one unit of parallel work multiplies
WIDE = 4  # tokens and rows of the large tile: 16 sums in registers
AHEAD = 16  # rows further on that are asked for while a large tile is computed

dot = tile(1, 1)
_dots = tile(WIDE, WIDE, WIDE)


@njit(nogil=True)
def multiply(x, w, begin, end, out, column):
    """out[t, column + n - begin] = x[t] . w[n] for the rows n of w from begin to end.

    A row is read from memory once. A token alone goes row by row, one stream of memory; more of
    them in fours, the last ones computed twice rather than one by one.
    """
    num_tokens, shift = x.shape[0], column - begin
    n = begin
    if num_tokens > 1:
        last = num_tokens - 1
        while n + WIDE <= end:
            m = n + AHEAD
            ahead = (m, m + 1, m + 2, m + 3)
            for t in range(0, num_tokens, WIDE):
                tokens = (t, min(t + 1, last), min(t + 2, last), min(t + 3, last))
                sums = _dots(x, tokens, w, (n, n + 1, n + 2, n + 3), ahead)
                for i in range(WIDE):
                    for j in range(WIDE):
                        out[tokens[i], n + j + shift] = sums[WIDE * i + j]
            n += WIDE
    for m in range(n, end):
        for t in range(num_tokens):
            out[t, m + shift] = dot(x, (t,), w, (m,), ())[0]


@njit(cache=True, parallel=True, nogil=True)
def linear(x, w, out):
    num_rows = w.shape[0]
    for block in prange((num_rows + ROWS - 1) // ROWS):
        begin = block * ROWS
        multiply(x, w, begin, min(num_rows, begin + ROWS), out, begin)


@njit(cache=True, nogil=True)
def add_rms_norm(delta, residual, scale, weight, eps, normed, summed):
    num_tokens, hidden = residual.shape
    for t in range(num_tokens):
        for k in range(hidden):
            summed[t, k] = residual[t, k] + scale * delta[t, k]
        square = dot(summed, (t,), summed, (t,), ())[0]
        inverse = np.float32(1) / np.sqrt(square / np.float32(hidden) + eps)
        for k in range(hidden):
            normed[t, k] = summed[t, k] * inverse * weight[k]
