# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: neurons' values from their projections."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..config import Activation
from .gpu_launch import overlap
from .sizes import ceil_div


@triton.jit
def activate(gate, up, threshold, ACTIVATION: tl.constexpr):
    """A neuron's value from its projections, as `reference.activate`."""
    if ACTIVATION == "drelu":
        return tl.maximum(gate, 0.0) * tl.maximum(up, 0.0)
    elif ACTIVATION == "relu":
        return tl.maximum(gate, 0.0) * up
    elif ACTIVATION == "fatrelu":
        return tl.where(gate >= threshold, gate, 0.0) * up
    else:
        return gate * (1 / (1 + tl.exp(-gate))) * up


@triton.jit
def gated_kernel(
    projected_ptr,
    mask_ptr,
    out_ptr,
    num_elements,
    threshold,
    ACTIVATION: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Values from projections that lie pairwise, gate before up; masked where there is a mask."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < num_elements
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    pair = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    pairs = tl.load(projected_ptr + pair, mask=pair < 2 * num_elements, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(pairs, (BLOCK, 2)))
    value = activate(gate, up, threshold, ACTIVATION)
    if MASKED:
        value = tl.where(tl.load(mask_ptr + at, mask=inside, other=0) != 0, value, 0.0)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=inside)


def activated(
    projected: Tensor, mask: Tensor | None, activation: Activation, threshold: float
) -> Tensor:
    """Projections [T, 2 N], a neuron's gate before its up -> values [T, N], zero where the mask
    says so."""
    shape = projected.shape[0], projected.shape[1] // 2
    out = torch.empty(shape, device=projected.device, dtype=projected.dtype)
    block = 1024
    gated_kernel[(ceil_div(out.numel(), block),)](
        projected,
        out if mask is None else mask.view(torch.uint8),
        out,
        out.numel(),
        threshold,
        ACTIVATION=activation.value,
        MASKED=mask is not None,
        BLOCK=block,
        **overlap(out.device),
    )
    return out
