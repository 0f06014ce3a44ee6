# pyright: basic, reportMissingImports=false
"""Triton: what becomes of a product's sums before they are stored."""

from enum import IntEnum

import triton
import triton.language as tl


class Epilogue(IntEnum):
    """What becomes of the sums."""

    NONE = 0
    RELU = 1
    MASK = 2  # whether one exceeds the threshold
    GATED = 3  # values of pairs of rows, a gate's before an up's; `finish` makes them SwiGLU's


@triton.jit
def finish(y, threshold, EPILOGUE: tl.constexpr, KIND: tl.constexpr):
    """Sums [rows] or [rows, T] -> what is stored, of half as many rows where they are pairs."""
    if EPILOGUE == 1:
        y = tl.maximum(y, 0.0)
    if EPILOGUE == 2:
        y = y > threshold
    if EPILOGUE == 3:
        if len(y.shape) == 1:
            gate, up = tl.split(tl.reshape(y, (y.shape[0] // 2, 2)))
        else:
            pairs = tl.reshape(y, (y.shape[0] // 2, 2, y.shape[1]))
            gate, up = tl.split(tl.permute(pairs, (0, 2, 1)))
        y = gate * tl.sigmoid(gate) * up
    return y.to(KIND)
