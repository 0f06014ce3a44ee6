"""CPU kernels: predict neurons, gate them in one of three orders, sum up their output rows.

The three orders give the same bits: each sum runs as `cpu_simd` says, and the output rows are
added in ascending order of their neurons.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import numpy as np
from numba import njit, prange

from ..batch import FfnMode
from ..config import Activation
from .cpu_jit import bools, floats, kernel
from .cpu_matmul import ROWS, multiply
from .cpu_simd import LANES, ask_for, dot, exp, row_sum, tile

NEURONS = 256  # of which the down projection adds up the rows before it turns to the next token
CODES = {Activation.SILU: 0, Activation.RELU: 1, Activation.FATRELU: 2, Activation.DRELU: 3}
SILU, RELU, FATRELU, DRELU = CODES.values()
MODES = {FfnMode.TOKEN: 0, FfnMode.UNION: 1, FfnMode.DENSE: 2}
TOKEN, UNION, DENSE = MODES.values()
AHEAD = 2  # neurons further down a list whose rows are asked for
_four_dots = tile(4, 1)
_add_one, _add_four = row_sum(1), row_sum(4)


@kernel()
def predict(
    residual_at,
    fc1_at,
    fc2_at,
    thresholds_at,
    is_one,
    mask_at,
    num_tokens,
    num_columns,
    rank,
    num_neurons,
):
    residual = floats(residual_at, (num_tokens, num_columns))
    fc1, fc2 = floats(fc1_at, (rank, num_columns)), floats(fc2_at, (num_neurons, rank))
    thresholds = floats(thresholds_at, (1 if is_one else num_tokens, 1))
    _predict(residual, fc1, fc2, thresholds, bools(mask_at, (num_tokens, num_neurons)))


@njit(parallel=True)
def _predict(residual, fc1, fc2, thresholds, mask):
    """thresholds [T, 1], or [1, 1] for all tokens."""
    (num_tokens, num_neurons), rank = mask.shape, len(fc1)
    hidden = np.empty((num_tokens, rank), np.float32)
    for block in prange((rank + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(rank, begin + ROWS)
        multiply(residual, fc1, begin, end, hidden, begin)
        for t in range(num_tokens):
            row = hidden[t, begin:end]
            for i in range(len(row)):
                row[i] = max(row[i], np.float32(0))
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        begin = block * ROWS
        end = min(num_neurons, begin + ROWS)
        scores = np.empty((num_tokens, end - begin), np.float32)
        multiply(hidden, fc2, begin, end, scores, 0)
        for t in range(num_tokens):
            row, threshold = mask[t, begin:end], thresholds[t % len(thresholds), 0]
            for i in range(len(row)):
                row[i] = scores[t, i] > threshold


@njit(error_model="numpy")  # Python's division looks for zeros, one value at a time
def _activate(gate, up, code, threshold):
    if code == DRELU:
        return max(gate, np.float32(0)) * max(up, np.float32(0))
    if code == RELU:
        return max(gate, np.float32(0)) * up
    if code == FATRELU:
        return gate * up if gate >= threshold else np.float32(0)
    return gate / (np.float32(1) + exp(-gate)) * up


@njit(parallel=True)
def _gated(x, gate_up, mask, code, threshold, value):
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
            row = value[t, begin:end]
            for i in range(len(row)):
                row[i] = _activate(sums[t, 2 * i], sums[t, 2 * i + 1], code, threshold)
            if len(mask):
                keep = mask[t, begin:end]
                for i in range(len(row)):
                    row[i] = row[i] if keep[i] else np.float32(0)


@kernel()
def gated(x_at, gate_up_at, value_at, num_tokens, num_columns, num_neurons, code, threshold):
    """value[t, n] = act(x[t] . gate[n], x[t] . up[n]) for every neuron."""
    x = floats(x_at, (num_tokens, num_columns))
    gate_up = floats(gate_up_at, (2 * num_neurons, num_columns))
    value, nothing = floats(value_at, (num_tokens, num_neurons)), np.empty((0, 0), np.bool_)
    _gated(x, gate_up, nothing, code, np.float32(threshold), value)


@kernel()
def ffn(
    x_at,
    gate_up_at,
    down_at,
    mask_at,
    out_at,
    num_tokens,
    num_columns,
    num_neurons,
    code,
    threshold,
    mode,
    num_threads,
):
    """`reference.ffn`; a mask at address 0 is none."""
    x = floats(x_at, (num_tokens, num_columns))
    out, down = (
        floats(out_at, (num_tokens, num_columns)),
        floats(down_at, (num_neurons, num_columns)),
    )
    gate_up, threshold = floats(gate_up_at, (2 * num_neurons, num_columns)), np.float32(threshold)
    mask = bools(mask_at, (num_tokens if mask_at else 0, num_neurons))
    value = np.empty((num_tokens, num_neurons), np.float32)
    if mode == TOKEN:
        _gated_by_token(x, gate_up, mask, code, threshold, value)
    elif mode == UNION:
        _gated_by_neuron(x, gate_up, mask, code, threshold, value)
    else:
        _gated(x, gate_up, mask, code, threshold, value)
    _sum_rows(value, down, min(num_threads, (num_columns + LANES - 1) // LANES), out)


@njit
def _alive(gate, code, threshold):
    return gate >= threshold if code == FATRELU else gate > 0


@njit(parallel=True)
def _gated_by_token(x, gate_up, mask, code, threshold, value):
    """Token by token, its own neurons only; an up row only where the gate leaves something."""
    num_tokens, num_neurons = value.shape
    num_blocks = (num_neurons + NEURONS - 1) // NEURONS
    for work in prange(num_tokens * num_blocks):
        t, begin = work // num_blocks, work % num_blocks * NEURONS
        row = value[t, begin : begin + NEURONS]
        asked = np.empty(len(row), np.int64)
        count = 0
        for i in range(len(row)):
            row[i] = 0
            if not len(mask) or mask[t, begin + i]:
                asked[count] = i
                count += 1
        for i in range(count):
            n, upcoming = begin + asked[i], begin + asked[min(i + AHEAD, count - 1)]
            ask_for(gate_up, 2 * upcoming)
            ask_for(gate_up, 2 * upcoming + 1)
            gate = dot(x, t, gate_up, 2 * n)
            if _alive(gate, code, threshold):
                row[n - begin] = _activate(gate, dot(x, t, gate_up, 2 * n + 1), code, threshold)


@njit(parallel=True)
def _gated_by_neuron(x, gate_up, mask, code, threshold, value):
    """Neuron by neuron: a row that any token needs is read from memory once, for those tokens."""
    num_tokens, num_neurons = value.shape
    for block in prange((num_neurons + ROWS - 1) // ROWS):
        begin = block * ROWS
        size = min(num_neurons - begin, ROWS)
        asking = np.empty((size, num_tokens), np.int64)  # the tokens that ask for a neuron
        counts = np.zeros(size, np.int64)  # how many they are
        for t in range(num_tokens):
            for i in range(size):
                if not len(mask) or mask[t, begin + i]:
                    asking[i, counts[i]] = t
                    counts[i] += 1
        asked = np.nonzero(counts)[0]
        values = np.zeros((num_tokens, size), np.float32)
        gates = np.empty((num_tokens, 1), np.float32)
        ups = np.empty((num_tokens, 1), np.float32)
        for place in range(len(asked)):
            i, j = asked[place], asked[min(place + AHEAD, len(asked) - 1)]
            row, upcoming = 2 * (begin + i), 2 * (begin + j)
            tokens = asking[i, : counts[i]]
            _dot_with(x, tokens, gate_up, row, upcoming, gates)
            count = 0
            for k in range(len(tokens)):
                if _alive(gates[k, 0], code, threshold):
                    tokens[count], gates[count, 0] = tokens[k], gates[k, 0]
                    count += 1
            _dot_with(x, tokens[:count], gate_up, row + 1, upcoming + 1, ups)
            for k in range(count):
                values[tokens[k], i] = _activate(gates[k, 0], ups[k, 0], code, threshold)
        for t in range(num_tokens):
            value[t, begin : begin + size] = values[t]


@njit
def _dot_with(x, tokens, w, row, upcoming, out):
    """out[i] = x[tokens[i]] . w[row], one by one or in fours."""
    if len(tokens) == 1:
        ask_for(w, upcoming)
        out[0, 0] = dot(x, tokens[0], w, row)
        return
    for i in range(0, len(tokens), 4):
        _four_dots(out, row, x, tokens, i, w, row, row + 1, upcoming)


@njit(parallel=True)
def _sum_rows(value, down, num_slices, out):
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
            end = min(num_neurons, begin + NEURONS)
            for t in range(num_tokens):
                _add_rows(value[t, begin:end], active, down, begin, low, out[t, low:high])


@njit
def _add_rows(weights, active, down, begin, low, total):
    """total += weights[i] * down[begin + i, low:] for each weight that is not 0, four at a time."""
    count = 0
    for i in range(len(weights)):
        if weights[i] != 0:
            active[count] = i
            count += 1
    num_tiled = count // 4 * 4
    for i in range(0, num_tiled, 4):
        a, b, c, d = active[i], active[i + 1], active[i + 2], active[i + 3]
        four = (weights[a], weights[b], weights[c], weights[d])
        _add_four(total, four, down, (begin + a, begin + b, begin + c, begin + d), low)
    for i in range(num_tiled, count):
        _add_one(total, (weights[active[i]],), down, (begin + active[i],), low)
