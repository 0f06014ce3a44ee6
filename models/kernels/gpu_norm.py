# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: the root-mean-square norm, with the residual's addition before it in the same pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .gpu_launch import overlap
from .sizes import power_of_two


@triton.jit
def norm_kernel(
    delta_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    sum_ptr,
    scale,
    eps,
    hidden,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token; rounds to the storage type where the reference does."""
    at = tl.program_id(0).to(tl.int64) * hidden + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < hidden
    kind = normed_ptr.dtype.element_ty
    if PDL:
        gdc_launch_dependents()
    weight = tl.load(weight_ptr + tl.arange(0, BLOCK), mask=inside, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    x = tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += (
            (tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale)
            .to(kind)
            .to(tl.float32)
        )
        rounded = x.to(kind)
        tl.store(sum_ptr + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / hidden + eps)
    normed = (x * factor).to(kind).to(tl.float32) * weight
    tl.store(normed_ptr + at, normed.to(kind), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm`."""
    normed = torch.empty_like(x)
    _launch(x, x, weight, normed, x, 1.0, eps, False)
    return normed


def add_rms_norm(
    delta: Tensor, residual: Tensor, scale: float, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm`."""
    normed, total = torch.empty_like(residual), torch.empty_like(residual)
    _launch(delta, residual, weight, normed, total, scale, eps, True)
    return normed, total


def _launch(
    delta: Tensor,
    residual: Tensor,
    weight: Tensor,
    normed: Tensor,
    total: Tensor,
    scale: float,
    eps: float,
    add: bool,
) -> None:
    num_tokens, hidden = residual.shape
    norm_kernel[(num_tokens,)](
        delta,
        residual,
        weight,
        normed,
        total,
        scale,
        eps,
        hidden,
        ADD=add,
        BLOCK=power_of_two(hidden),
        num_warps=8 if hidden > 1024 else 2,
        **overlap(residual.device),
    )
