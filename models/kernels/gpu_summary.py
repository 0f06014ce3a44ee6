# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: the summaries of K/V pages: `reference_pages.summarize`."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_launch import overlap
from .sizes import power_of_two

ROWS = tl.constexpr(16)  # keys asked for at once


@triton.jit
def summarize_page(
    own, k_ptr, summary_ptr, slot, head, num_kv_heads,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Write the summary of a slot's page if the slot is its last one, for the key own [DIM] that
    belongs there; a slot below 0 is none."""
    if (slot >= 0) & (slot % PAGE == PAGE - 1):
        row = slot // PAGE * num_kv_heads + head
        d = tl.arange(0, DIM)
        inside = d < HEAD_DIM
        keys = k_ptr + row * PAGE * HEAD_DIM + d
        low = own.to(tl.float32)
        high = low
        rows: tl.constexpr = ROWS if PAGE > ROWS else PAGE
        for start in range(0, PAGE - 1, rows):
            for i in tl.static_range(rows):
                at = tl.minimum(start + i, PAGE - 2) * HEAD_DIM
                key = tl.load(keys + at, mask=inside, other=0.0).to(tl.float32)
                low, high = tl.minimum(low, key), tl.maximum(high, key)
        kind = summary_ptr.dtype.element_ty
        out = summary_ptr + row * 2 * HEAD_DIM + d
        tl.store(out, low.to(kind), mask=inside)
        tl.store(out + HEAD_DIM, high.to(kind), mask=inside)


@triton.jit
def summarize_kernel(
    k_ptr, summary_ptr, slots_ptr,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token, one K/V head."""
    t, head = tl.program_id(0), tl.program_id(1)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    num_kv_heads = tl.num_programs(1)
    slot = tl.load(slots_ptr + t)
    d = tl.arange(0, DIM)
    row = (slot // PAGE * num_kv_heads + head) * PAGE + slot % PAGE
    own = tl.load(k_ptr + row * HEAD_DIM + d, mask=(slot >= 0) & (d < HEAD_DIM), other=0.0)
    summarize_page(own, k_ptr, summary_ptr, slot, head, num_kv_heads, PAGE, HEAD_DIM, DIM)


def summarize(k_cache: Tensor, summary: Tensor, slots: Tensor) -> None:
    """`reference_pages.summarize`."""
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    summarize_kernel[(slots.shape[0], num_kv_heads)](
        k_cache,
        summary,
        slots,
        PAGE=page_size,
        HEAD_DIM=head_dim,
        DIM=power_of_two(head_dim),
        num_warps=4,
        **overlap(k_cache.device),
    )
