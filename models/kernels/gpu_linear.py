# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
"""Triton: `x @ weight.T` for few tokens, where reading the weights is all that takes time.

One token: every program asks for its rows at once, before it even waits for `x`. A few: tiles on
tensor cores with the weights on the left, so that 64 rows meet 16 tokens and not 16 of 64 lanes are
idle. Sums run in one order: no float is added atomically.
"""

from enum import IntEnum

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from .gpu_launch import counters, multiprocessors, overlap
from .sizes import ceil_div, power_of_two, power_of_two_in

MAX_TOKENS = 64
ROWS = 64  # of a tile: what one warp group multiplies at once
PER_PROCESSOR, MAX_SPLITS = 2, 8  # programs that a multiprocessor holds; of the columns
ELEMENTS = 16384  # of the weights that a program of one token holds
WHOLE = 1024  # elements that four warps load 16 bytes a thread of


class Epilogue(IntEnum):
    """What becomes of the sums."""

    NONE = 0
    RELU = 1
    MASK = 2  # whether one exceeds the threshold
    GATED = 3  # SwiGLU of pairs of rows, a gate's before an up's


@triton.jit
def _finish(y, threshold, EPILOGUE: tl.constexpr, KIND: tl.constexpr):
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


@triton.jit
def one_kernel(
    x_ptr,
    norm_ptr,
    weight_ptr,
    row_scale_ptr,
    add_ptr,
    out_ptr,
    chosen_ptr,
    threshold,
    eps,
    scale,
    num_rows,
    expert_rows,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EPILOGUE: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    ADD: tl.constexpr,
    PER_EXPERT: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token, [WIDTH] x [rows, WIDTH], row r at r * STRIDE.

    NORM: x is normed first. SCALED: each row of the weight has a scale. ADD: the result is scaled
    and added to another row.
    ROUTED: `expert_rows` rows belong to an expert, and only the chosen ones' are multiplied.
    PER_EXPERT: each expert has an x of its own.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    steps: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K
    expert = 0
    if PDL:
        gdc_launch_dependents()
    if ROUTED:
        place = tl.program_id(0) * BLOCK_N // expert_rows
        if PDL:
            gdc_wait()
        expert = tl.load(chosen_ptr + place).to(tl.int32)
        rows += (expert - place) * expert_rows
    row = weight_ptr + tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None] * STRIDE
    weights = ()
    for step in tl.static_range(steps):
        at = step * BLOCK_K + k
        if WIDTH % BLOCK_K == 0:
            weights = weights + (tl.load(row + at[None, :]),)  # noqa: RUF005
        else:
            tile = tl.load(row + at[None, :], mask=(at < WIDTH)[None, :], other=0.0)
            weights = weights + (tile,)  # noqa: RUF005
    if SCALED:
        row_scale = tl.load(row_scale_ptr + tl.minimum(rows, num_rows - 1))
    if PDL and not ROUTED:
        gdc_wait()
    if PER_EXPERT:
        x_ptr += expert * WIDTH
    factor = 1.0
    if NORM:
        square = 0.0
        for step in tl.static_range(steps):
            at = step * BLOCK_K + k
            x = tl.load(x_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
            square += tl.sum(x * x, 0)
        factor = tl.rsqrt(square / WIDTH + eps)
    kind = x_ptr.dtype.element_ty
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for step in tl.static_range(steps):
        at = step * BLOCK_K + k
        x = tl.load(x_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        if NORM:
            norm = tl.load(norm_ptr + at, mask=at < WIDTH, other=0.0).to(tl.float32)
            x = ((x * factor).to(kind).to(tl.float32) * norm).to(kind).to(tl.float32)
        acc += weights[step].to(tl.float32) * x[None, :]
    y = tl.sum(acc, 1)
    if SCALED:
        y = y * row_scale
    if ADD:
        y = y * scale + tl.load(add_ptr + rows, mask=rows < num_rows, other=0.0).to(tl.float32)
    y = _finish(y, threshold, EPILOGUE, out_ptr.dtype.element_ty)
    if EPILOGUE == 3:
        rows = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        tl.store(out_ptr + rows, y, mask=rows < num_rows // 2)
    else:
        tl.store(out_ptr + rows, y, mask=rows < num_rows)


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
        y = _finish(acc, threshold, EPILOGUE, out_ptr.dtype.element_ty)
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
    return num_tokens == 1 or (num_tokens <= MAX_TOKENS and power_of_two_in(width) >= 16)


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
    float32 that the sums are multiplied by. x is normed by norm [WIDTH] and eps first: for one
    token here, for more before the call. With routing, the rows are E experts' one after the other,
    [E, rows / E, WIDTH]: those whom no token was sent to are left as they are, and a mask is false
    for a token that was sent elsewhere. With `per_expert` x is [T, E * WIDTH], a
    part for each.
    """
    num_rows, num_experts = weight.shape[0], 1 if routing is None else routing.weights.shape[1]
    assert weight.stride(1) == 1, weight.stride()
    assert x.is_contiguous(), x.stride()
    assert norm is None or x.shape[0] == 1, x.shape
    shared = {
        "WIDTH": weight.shape[1],
        "STRIDE": weight.stride(0),
        "EPILOGUE": int(epilogue),
        "SCALED": row_scale is not None,
        "ADD": add is not None,
        "PER_EXPERT": per_expert,
        "ROUTED": routing is not None,
        **overlap(x.device),
    }
    expert_rows = num_rows // num_experts
    if x.shape[0] > 1 or (norm is None and _long(x, weight, routing)):
        rest = (out, routing, threshold, scale, expert_rows, shared)
        return _few(x, weight, row_scale, add, *rest)
    width = weight.shape[1]
    columns = power_of_two_in(width)
    columns = min(4096, columns) if columns >= 64 else power_of_two(width)
    rows = min(8, max(1, power_of_two(ELEMENTS // width + 1) // 2))
    rows = max(rows, WHOLE // columns)
    if epilogue is Epilogue.GATED or expert_rows % rows:
        rows = 2 if expert_rows % 2 == 0 else 1
    if epilogue is Epilogue.GATED and width <= 4096:
        rows = 4
    num_chosen = 1 if routing is None else routing.chosen.shape[1]
    one_kernel[(num_chosen * ceil_div(expert_rows, rows),)](
        x,
        norm,
        weight,
        row_scale,
        add,
        out,
        None if routing is None else routing.chosen,
        threshold,
        eps,
        scale,
        num_rows,
        expert_rows,
        BLOCK_N=rows,
        BLOCK_K=columns,
        NORM=norm is not None,
        num_warps=8 if columns >= 1024 else 4,
        **shared,
    )
    return out


def _few(
    x: Tensor,
    weight: Tensor,
    row_scale: Tensor | None,
    add: Tensor | None,
    out: Tensor,
    routing: Routing | None,
    threshold: float,
    scale: float,
    expert_rows: int,
    shared: dict[str, int | bool],
) -> Tensor:
    num_tokens, (num_rows, width), device = x.shape[0], weight.shape, x.device
    columns = min(128, power_of_two_in(width))
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
        SPLITS=splits,
        EXPERTS=1 if routing is None else routing.weights.shape[1],
        TOKENS=tokens,
        ROWS=rows,
        BLOCK_N=block,
        BLOCK_K=columns if half else min(32, columns),
        STAGES=(6 if small else 4) if half else 2,
        num_warps=4,
        **shared,
    )
    return out


def _long(x: Tensor, weight: Tensor, routing: Routing | None) -> bool:
    """Whether even one token is multiplied faster on tiles: many short rows, as of a predictor."""
    (num_rows, width), half = weight.shape, x.element_size() == weight.element_size() == 2
    return half and routing is None and num_rows >= 8 * width and power_of_two_in(width) >= 128


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
