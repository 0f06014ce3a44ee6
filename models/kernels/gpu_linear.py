# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: `x @ weight.T` for few tokens, where reading the weights is all that takes time.

On a Hopper the weights of up to 8 tokens stream; elsewhere, and where they are of experts or in 8
bits, past one token or two. A few more: tiles on tensor cores with the weights on the left, so that
64 rows meet 16 tokens and not 16 of 64 lanes are idle. Sums run in one order: no float is added
atomically.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from . import gpu_linear_one, gpu_stream_linear
from .gpu_epilogue import Epilogue, finish
from .gpu_launch import counters, multiprocessors, overlap
from .gpu_norm import rms_norm
from .sizes import ceil_div, fill_tiles, power_of_two, power_of_two_in

MAX_TOKENS = 64
ROWS = 64  # of a tile: what one warp group multiplies at once
PER_PROCESSOR, MAX_SPLITS = 2, 8  # programs that a multiprocessor holds; of the columns


@triton.jit(do_not_specialize=["num_tokens"])
def few_kernel(
    x_ptr,
    weight_ptr,
    row_scale_ptr,
    add_ptr,
    out_ptr,
    partial_ptr,
    counter_ptr,
    routing_ptr,
    threshold,
    scale,
    num_tokens,
    num_rows,
    x_stride,
    expert_rows,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    SPLITS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    SCALED: tl.constexpr,
    ADD: tl.constexpr,
    PER_EXPERT: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """A few tokens [T, WIDTH] over ROWS of the weight, on a tile of BLOCK_N, and a share of the
    columns; the last program of a tile adds the shares. A mask of a token that the router sent
    elsewhere is false."""
    tile, split = tl.program_id(0), tl.program_id(1)
    n = tl.arange(0, BLOCK_N)
    rows = tile * ROWS + n
    wanted = (n < ROWS) & (rows < num_rows)
    k = tl.arange(0, BLOCK_K)
    t = tl.arange(0, TOKENS)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    routed = t < num_tokens
    if ROUTED:
        expert = tile * ROWS // expert_rows
        sent = tl.load(routing_ptr + t * EXPERTS + expert, mask=t < num_tokens, other=0.0)
        routed = sent != 0
        if tl.max(routed.to(tl.int32), 0) == 0:
            return
        if PER_EXPERT:
            x_ptr += expert * WIDTH
    row = weight_ptr + rows.to(tl.int64)[:, None] * STRIDE
    share: tl.constexpr = WIDTH // SPLITS
    acc = tl.zeros((BLOCK_N, TOKENS), tl.float32)
    for start in tl.range(split * share, (split + 1) * share, BLOCK_K, num_stages=STAGES):
        at = start + k
        w = tl.load(row + at[None, :], mask=wanted[:, None], other=0.0)
        x = tl.load(
            x_ptr + t[None, :] * x_stride + at[:, None], mask=t[None, :] < num_tokens, other=0.0
        )
        acc = tl.dot(w.to(x.dtype), x, acc, input_precision="ieee")
    last = True
    if SPLITS > 1:
        place = partial_ptr + (tile * SPLITS * BLOCK_N + n[:, None]) * TOKENS + t[None, :]
        tl.store(place + split * BLOCK_N * TOKENS, acc)
        tl.debug_barrier()
        last = tl.atomic_add(counter_ptr + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if last:
        if SPLITS > 1:
            tl.store(counter_ptr + tile, 0)
            acc = tl.zeros((BLOCK_N, TOKENS), tl.float32)
            for part in tl.static_range(SPLITS):
                acc += tl.load(place + part * BLOCK_N * TOKENS, cache_modifier=".cg")
        at = t[None, :] * num_rows + rows[:, None]
        inside = (t[None, :] < num_tokens) & wanted[:, None]
        if SCALED:
            acc = acc * tl.load(row_scale_ptr + rows, mask=wanted, other=0.0)[:, None]
        if ADD:
            acc = acc * scale + tl.load(add_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = finish(acc, threshold, EPILOGUE, out_ptr.dtype.element_ty)
        if EPILOGUE == 2:
            y = tl.where(routed[None, :], y, 0)
        if EPILOGUE == 3:
            half = tl.arange(0, BLOCK_N // 2)
            pair = tile * (ROWS // 2) + half
            there = (half < ROWS // 2) & (pair < num_rows // 2)
            at = t[None, :] * (num_rows // 2) + pair[:, None]
            inside = (t[None, :] < num_tokens) & there[:, None]
        tl.store(out_ptr + at, y, mask=inside)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether these kernels multiply such shapes; the rest is cuBLAS's."""
    num_tokens, width = x.shape[0], weight.shape[-1]
    return num_tokens == 1 or (num_tokens <= MAX_TOKENS and fill_tiles(width))


def multiply(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    epilogue: Epilogue = Epilogue.NONE,
    *,
    threshold: float = 0.0,
    norm: Tensor | None = None,
    eps: float = 0.0,
    add: Tensor | None = None,
    scale: float = 1.0,
    routing: Routing | None = None,
    per_expert: bool = False,
    row_scale: Tensor | None = None,
) -> Tensor:
    """out [T, rows] = epilogue(add + scale * (x [T, WIDTH] @ weight.T)), for shapes that `fits`.

    weight [rows, WIDTH], of any row stride and of x's type, or float8 with a row_scale [rows]
    float32 that the sums are multiplied by. x is normed by norm [WIDTH] and eps first, where they
    are given. With routing, the rows are E experts' one after the other, [E, rows / E, WIDTH]:
    those whom no token was sent to are left as they are, and a mask is false for a token that was
    sent elsewhere. With `per_expert` x is [T, E * WIDTH], a part for each.
    """
    assert weight.stride(1) == 1, weight.stride()
    assert x.is_contiguous(), x.stride()
    if routing is None and row_scale is None and gpu_stream_linear.fits(x, weight):
        return gpu_stream_linear.multiply(
            x, weight, out, epilogue, threshold, norm, eps, add, scale
        )
    if norm is not None and not gpu_linear_one.fits(*x.shape):
        x, norm = rms_norm(x, norm, eps), None
    if norm is not None or _streams(x, weight, routing, add):
        return gpu_linear_one.multiply(
            x, weight, out, epilogue, threshold, norm, eps, add, scale, routing, per_expert,
            row_scale,
        )  # fmt: skip
    num_tokens, (num_rows, width), device = x.shape[0], weight.shape, x.device
    num_experts = 1 if routing is None else routing.weights.shape[1]
    expert_rows, columns = num_rows // num_experts, min(128, power_of_two_in(width))
    if routing is None:
        block, (rows, splits) = ROWS, _shares(num_rows, width // columns, device)
    else:
        block = rows = max(16, min(ROWS, power_of_two_in(expert_rows)))
        splits = 1
    tiles = ceil_div(num_rows, rows)
    tokens, half = power_of_two(max(16, num_tokens)), x.element_size() == 2
    small = columns < 128 or weight.element_size() == 1  # tiles: more of them are asked for early
    size = tiles * splits * block * tokens if splits > 1 else 0
    few_kernel[(tiles, splits)](
        x,
        weight,
        row_scale,
        add,
        out,
        torch.empty(size, dtype=torch.float32, device=device),
        counters(device),
        None if routing is None else routing.weights,
        threshold,
        scale,
        num_tokens,
        num_rows,
        x.shape[1],
        expert_rows,
        WIDTH=width,
        STRIDE=weight.stride(0),
        SPLITS=splits,
        EXPERTS=num_experts,
        TOKENS=tokens,
        ROWS=rows,
        BLOCK_N=block,
        BLOCK_K=columns if half else min(32, columns),
        STAGES=(6 if small else 4) if half else 2,
        EPILOGUE=int(epilogue),
        SCALED=row_scale is not None,
        ADD=add is not None,
        PER_EXPERT=per_expert,
        ROUTED=routing is not None,
        num_warps=4,
        **overlap(device),
    )
    return out


def _streams(x: Tensor, weight: Tensor, routing: Routing | None, add: Tensor | None) -> bool:
    """Whether so few tokens are multiplied faster while weights stream than on tiles. Many short
    rows, as of a predictor, are not, and of two tokens not what is added to something."""
    (num_tokens, width), num_rows = x.shape, weight.shape[0]
    half = x.element_size() == weight.element_size() == 2
    if half and routing is None and num_rows >= 8 * width and power_of_two_in(width) >= 128:
        return False
    if num_tokens == 1:
        return True
    return routing is None and add is None and gpu_linear_one.fits(*x.shape)


def _shares(num_rows: int, num_blocks: int, device: torch.device) -> tuple[int, int]:
    """Rows of a tile and splits of the columns, such that every multiprocessor gets as much to read
    as any other: the one that reads the most is who all wait for."""
    programs, splits = PER_PROCESSOR * multiprocessors(device), 1
    while (
        splits < MAX_SPLITS
        and 2 * splits * num_rows <= programs * ROWS
        and num_blocks % (2 * splits) == 0
    ):
        splits *= 2
    waves = ceil_div(splits * num_rows, programs * ROWS)
    rows = ceil_div(splits * num_rows, waves * programs)
    return min(ROWS, rows + rows % 2), splits  # even, for pairs
