"""CPU kernels: rows of weights times rows of tokens, and the root-mean-square norm."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from .cpu_jit import floats, kernel
from .cpu_simd import WIDE_REGISTERS, dot, tile

# As many sums as registers hold beside what is being multiplied, few of them for one more load.
TOKENS, NEXT = (4, 4) if WIDE_REGISTERS else (3, 2)
ROWS = 32  # weight rows that one unit of parallel work multiplies
AHEAD = 16  # rows further on that are asked for meanwhile

_tile = tile(TOKENS, NEXT)


@njit
def multiply(x, w, begin, end, out, column):
    """out[t, column + n - begin] = x[t] . w[n] for the rows n of w from begin to end.

    A row is read from memory once. A token alone goes row by row, one stream of memory.
    """
    num_tokens, shift = x.shape[0], begin - column
    if num_tokens == 1:
        for n in range(begin, end):
            out[0, n - shift] = dot(x, 0, w, n)
        return
    for n in range(begin, end, NEXT):
        for t in range(0, num_tokens, TOKENS):
            _tile(out, shift, x, None, t, w, n, end, n + AHEAD)


@kernel()
def linear(x_at, w_at, out_at, num_tokens, num_columns, num_rows):
    """x [T, in], w [rows, in], out [T, rows]."""
    x, w = floats(x_at, (num_tokens, num_columns)), floats(w_at, (num_rows, num_columns))
    _linear(x, w, floats(out_at, (num_tokens, num_rows)))


@njit(parallel=True)
def _linear(x, w, out):
    num_rows = len(w)
    for block in prange((num_rows + ROWS - 1) // ROWS):
        begin = block * ROWS
        multiply(x, w, begin, min(num_rows, begin + ROWS), out, begin)


@kernel()
def rms_norm(x_at, weight_at, eps, normed_at, num_tokens, hidden):
    shape = (num_tokens, hidden)
    x, normed = floats(x_at, shape), floats(normed_at, shape)
    weight, eps = floats(weight_at, (hidden,)), np.float32(eps)
    for t in range(num_tokens):
        square = dot(x, t, x, t)
        inverse = np.float32(1) / np.sqrt(square / np.float32(hidden) + eps)
        for k in range(hidden):
            normed[t, k] = x[t, k] * inverse * weight[k]
