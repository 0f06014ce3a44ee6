"""CPU kernels: predict neurons, gate them in one of three orders, sum up their output rows.

The three orders give the same bits: each sum runs as `cpu_simd` says, and the output rows are
added in ascending order of their neurons.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..config import Activation
from .cpu_matmul import ROWS, WIDE, dot, multiply
from .cpu_simd import exp, tile

NEURONS = 128  # of which the down projection adds up the rows before it turns to the next token
CODES = {a: i for i, a in enumerate(Activation)}
SILU, RELU, FATRELU, DRELU = (CODES[a] for a in Activation)
_row_dots = tile(WIDE, 1)


@njit(cache=True, parallel=True, nogil=True)
def predict(residual, fc1, fc2, threshold, hidden, mask):
    num_tokens, rank = hidden.shape
    for block in prange((rank + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(rank, begin + ROWS)
        multiply(residual, fc1, begin, end, hidden, begin)
        for t in range(num_tokens):
            for n in range(begin, end):
                hidden[t, n] = max(hidden[t, n], np.float32(0))
    num_neurons = fc2.shape[0]
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(num_neurons, begin + ROWS)
        scores = np.empty((num_tokens, end - begin), np.float32)
        multiply(hidden, fc2, begin, end, scores, 0)
        for t in range(num_tokens):
            for i in range(end - begin):
                mask[t, begin + i] = scores[t, i] > threshold


@njit
def _activate(gate, up, code, threshold):
    if code == DRELU:
        return max(gate, np.float32(0)) * max(up, np.float32(0))
    if code == RELU:
        return max(gate, np.float32(0)) * up
    if code == FATRELU:
        return gate * up if gate >= threshold else np.float32(0)
    return gate / (np.float32(1) + exp(-gate)) * up


@njit(cache=True, parallel=True, nogil=True)
def gated(x, gate_up, mask, masked, code, threshold, value):
    """Every gate and up: value[t, n] = act(x[t] . gate[n], x[t] . up[n]), zero where masked out.

    gate_up is [2N, hidden] here: a neuron's gate row, then its up row.
    """
    num_tokens, num_neurons = value.shape
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(num_neurons, begin + ROWS)
        sums = np.empty((num_tokens, 2 * (end - begin)), np.float32)
        multiply(x, gate_up, 2 * begin, 2 * end, sums, 0)
        for t in range(num_tokens):
            for i in range(end - begin):
                value[t, begin + i] = _activate(sums[t, 2 * i], sums[t, 2 * i + 1], code, threshold)
            if masked:
                for n in range(begin, end):
                    value[t, n] = value[t, n] if mask[t, n] else np.float32(0)


@njit
def _alive(gate, code, threshold):
    return gate >= threshold if code == FATRELU else gate > 0


@njit(cache=True, parallel=True, nogil=True)
def gated_by_token(x, gate_up, mask, masked, code, threshold, value):
    """Token by token, its own neurons only; an up row only where the gate leaves something."""
    num_tokens, num_neurons = value.shape
    num_blocks = (num_neurons + ROWS - 1) // ROWS
    for work in prange(num_tokens * num_blocks):
        t, block = work // num_blocks, work % num_blocks
        for n in range(block * ROWS, min(num_neurons, (block + 1) * ROWS)):
            value[t, n] = 0
            if not masked or mask[t, n]:
                gate = dot(x, (t,), gate_up, (2 * n,))[0]
                if _alive(gate, code, threshold):
                    up = dot(x, (t,), gate_up, (2 * n + 1,))[0]
                    value[t, n] = _activate(gate, up, code, threshold)


@njit(cache=True, parallel=True, nogil=True)
def gated_by_neuron(x, gate_up, mask, masked, code, threshold, value):
    """Neuron by neuron: a row that any token needs is read from memory once, for those tokens."""
    num_tokens, num_neurons = value.shape
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(num_neurons, begin + ROWS)
        tokens = np.empty(num_tokens, np.int64)
        gates = np.empty(num_tokens, np.float32)
        ups = np.empty(num_tokens, np.float32)
        values = np.zeros((num_tokens, end - begin), np.float32)
        for n in range(begin, end):
            count = 0
            for t in range(num_tokens):
                tokens[count] = t
                count += not masked or mask[t, n]
            _dots_of(x, tokens, count, gate_up, 2 * n, gates)
            num_asking, count = count, 0
            for i in range(num_asking):
                if _alive(gates[i], code, threshold):
                    tokens[count], gates[count] = tokens[i], gates[i]
                    count += 1
            _dots_of(x, tokens, count, gate_up, 2 * n + 1, ups)
            for i in range(count):
                values[tokens[i], n - begin] = _activate(gates[i], ups[i], code, threshold)
        for t in range(num_tokens):
            for i in range(end - begin):
                value[t, begin + i] = values[t, i]


@njit
def _dots_of(x, tokens, count, w, n, out):
    """out[i] = x[tokens[i]] . w[n] for the first `count` tokens, one by one or in fours."""
    if count == 1:
        out[0] = dot(x, (tokens[0],), w, (n,))[0]
        return
    last = count - 1
    for i in range(0, count, WIDE):
        places = (i, min(i + 1, last), min(i + 2, last), min(i + 3, last))
        chosen = (tokens[places[0]], tokens[places[1]], tokens[places[2]], tokens[places[3]])
        sums = _row_dots(x, chosen, w, (n,))
        for j in range(WIDE):
            out[places[j]] = sums[j]


@njit(cache=True, parallel=True, fastmath={"contract"}, nogil=True)
def sum_rows(value, down, num_slices, out):
    """out[t] = sum of value[t, n] * down[n] over the neurons n that are not zero, ascending.

    Each slice of the columns is one thread's, so none waits for another's partial sum.
    """
    num_tokens, num_neurons = value.shape
    hidden = down.shape[1]
    for part in prange(num_slices):
        low, high = part * hidden // num_slices, (part + 1) * hidden // num_slices
        active = np.empty(NEURONS, np.int64)
        out[:, low:high] = 0
        for begin in range(0, num_neurons, NEURONS):
            for t in range(num_tokens):
                count = 0
                for n in range(begin, min(num_neurons, begin + NEURONS)):
                    active[count] = n
                    count += value[t, n] != 0
                _add_rows(value[t], active[:count], down[:, low:high], out[t, low:high])


@njit(fastmath={"contract"})
def _add_rows(weights, rows, table, total):
    """total += weights[n] * table[n] for each of `rows`, four to one turn through `total`.

    Indices inside the loops over k count from 0: numba guards others against being negative,
    and nothing is vectorised then.
    """
    num_tiled = len(rows) // 4 * 4
    for i in range(0, num_tiled, 4):
        a, b, c, d = table[rows[i]], table[rows[i + 1]], table[rows[i + 2]], table[rows[i + 3]]
        wa, wb = weights[rows[i]], weights[rows[i + 1]]
        wc, wd = weights[rows[i + 2]], weights[rows[i + 3]]
        for k in range(len(total)):
            total[k] = (((total[k] + wa * a[k]) + wb * b[k]) + wc * c[k]) + wd * d[k]
    for n in rows[num_tiled:]:
        a, wa = table[n], weights[n]
        for k in range(len(total)):
            total[k] = total[k] + wa * a[k]
