"""A row kernel that only reads. Imported where there is Triton."""
# pyright: basic, reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _rows_kernel(data, out, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for start in tl.static_range(0, COLUMNS, BLOCK):
        total += tl.load(data + row.to(tl.int64) * COLUMNS + start + columns).to(tl.float32)
    tl.store(out + row, tl.sum(total))


def read_rows(data: Tensor, out: Tensor) -> None:
    """The sums of the rows of data [R, C] to out [R] float32; C is a multiple of BLOCK."""
    assert data.shape[1] % BLOCK == 0, data.shape
    _rows_kernel[(data.shape[0],)](data, out, data.shape[1], BLOCK)
