# ruff: noqa: RUF005
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false
"""Triton: `x @ weight.T` for one token or two, rows of the weight streaming past them.

Programs stay: each keeps the tokens in registers and takes its share of the rows, tile after tile,
through shared memory. Before it even waits for the tokens it asks for as many tiles as fit there:
that is what memory does while the kernel before comes to its end.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from ..batch import Routing
from .gpu_epilogue import Epilogue, finish
from .gpu_launch import multiprocessors, overlap, shared_memory
from .gpu_norm import rounded
from .sizes import ceil_div, power_of_two, power_of_two_in

MAX_TOKENS = 2
WIDE = 8192  # columns, of which four warps hold two tokens; beyond, eight hold one
PER_PROCESSOR, LARGE = 2, 32768  # programs of a multiprocessor, one if tiles have more bytes
TILE = 16384  # bytes of one, about
MAX_STAGES, AFTER = 6, 5  # tiles under way, and beside what has not finished (measured)
MAX_CHUNKS = 16  # of the columns, in powers of two
VECTORS = 1024  # elements that four warps load 16 bytes a thread of


@triton.jit
def stream_kernel(
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
    share,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    EPILOGUE: tl.constexpr,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    ADD: tl.constexpr,
    PER_EXPERT: tl.constexpr,
    ROUTED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Tokens [T, WIDTH] x a share of rows [rows, WIDTH], row r at r * STRIDE.

    NORM: x is normed first. SCALED: each row of the weight has a scale. ADD: the result is scaled
    and added to another row.
    ROUTED: `expert_rows` rows belong to an expert, and only the chosen ones' are multiplied, whom
    the second axis of the grid counts.
    PER_EXPERT: each expert has an x of its own.
    """
    k = tl.arange(0, BLOCK_K)
    chunks: tl.constexpr = (WIDTH + BLOCK_K - 1) // BLOCK_K
    kind = x_ptr.dtype.element_ty
    first = 0
    if PDL:
        gdc_launch_dependents()
    if ROUTED:
        if PDL:
            gdc_wait()
        expert = tl.load(chosen_ptr + tl.program_id(1)).to(tl.int32)
        first = expert * expert_rows
        if PER_EXPERT:
            x_ptr += expert * WIDTH
    begin = first + tl.program_id(0) * share
    end = tl.minimum(begin + share, first + expert_rows)
    xs = ()
    for _ in tl.static_range(TOKENS * chunks):
        xs = xs + (tl.zeros((BLOCK_K,), tl.float32),)
    for start in tl.range(begin, end, BLOCK_N, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_N)
        there = rows < end
        row = weight_ptr + rows.to(tl.int64)[:, None] * STRIDE
        tiles = ()
        for chunk in tl.static_range(chunks):
            at = chunk * BLOCK_K + k
            wanted = there[:, None]
            if WIDTH % BLOCK_K != 0:
                wanted &= (at < WIDTH)[None, :]
            tile = tl.load(row + at[None, :], mask=wanted, other=0.0)
            tiles = tiles + (tile,)
        if start == begin:
            xs = _tokens(
                x_ptr, norm_ptr, eps, TOKENS, chunks, WIDTH, BLOCK_K, NORM, PDL and not ROUTED, kind
            )
        ys = ()
        for t in tl.static_range(TOKENS):
            term = tiles[0].to(tl.float32) * xs[t * chunks][None, :]
            for chunk in tl.static_range(1, chunks):
                term += tiles[chunk].to(tl.float32) * xs[t * chunks + chunk][None, :]
            ys = ys + (tl.sum(term, 1),)
        if start < num_rows:  # always; but loads in here are not moved ahead of the wait
            for t in tl.static_range(TOKENS):
                y, out = ys[t], t * num_rows + rows
                if SCALED:
                    y = y * tl.load(row_scale_ptr + rows, mask=there, other=0.0)
                if ADD:
                    y = y * scale + tl.load(add_ptr + out, mask=there, other=0.0).to(tl.float32)
                y = finish(y, threshold, EPILOGUE, out_ptr.dtype.element_ty)
                if EPILOGUE == 3:
                    pairs = start // 2 + tl.arange(0, BLOCK_N // 2)
                    tl.store(out_ptr + t * (num_rows // 2) + pairs, y, mask=pairs < end // 2)
                else:
                    tl.store(out_ptr + out, y, mask=there)


@triton.jit
def _tokens(
    x_ptr,
    norm_ptr,
    eps,
    TOKENS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NORM: tl.constexpr,
    WAIT: tl.constexpr,
    KIND: tl.constexpr,
):
    """All chunks of the first token, then of the second, normed."""
    k = tl.arange(0, BLOCK_K)
    norms = ()
    if NORM:
        for chunk in tl.static_range(CHUNKS):
            at = chunk * BLOCK_K + k
            norm = tl.load(norm_ptr + at, mask=at < WIDTH, other=0.0)
            norms = norms + (norm.to(tl.float32),)
    if WAIT:
        gdc_wait()
    xs = ()
    for t in tl.static_range(TOKENS):
        for chunk in tl.static_range(CHUNKS):
            at = chunk * BLOCK_K + k
            x = tl.load(x_ptr + t * WIDTH + at, mask=at < WIDTH, other=0.0)
            xs = xs + (x.to(tl.float32),)
    if NORM:
        normed = ()
        for t in tl.static_range(TOKENS):
            square = xs[t * CHUNKS] * xs[t * CHUNKS]
            for chunk in tl.static_range(1, CHUNKS):
                square += xs[t * CHUNKS + chunk] * xs[t * CHUNKS + chunk]
            factor = tl.rsqrt(tl.sum(square, 0) / WIDTH + eps)
            for chunk in tl.static_range(CHUNKS):
                x = rounded(xs[t * CHUNKS + chunk], factor, norms[chunk], KIND)
                normed = normed + (x.to(tl.float32),)
        xs = normed
    return xs


def fits(num_tokens: int, width: int) -> bool:
    """Whether so many tokens stay in registers beside a tile."""
    return num_tokens == 1 or (num_tokens <= MAX_TOKENS and width <= WIDE)


def multiply(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    epilogue: Epilogue,
    threshold: float,
    norm: Tensor | None,
    eps: float,
    add: Tensor | None,
    scale: float,
    routing: Routing | None,
    per_expert: bool,
    row_scale: Tensor | None,
) -> Tensor:
    """`gpu_linear.multiply`, x normed by norm [WIDTH] and eps first where they are given; routing
    is one token's."""
    (num_rows, width), device = weight.shape, x.device
    columns = power_of_two_in(width)
    columns = min(4096, columns if width <= MAX_CHUNKS * columns else power_of_two(width))
    row_bytes = ceil_div(width, columns) * columns * weight.element_size()
    # two at least: of one the compiler knows that it is there, and asks for all too early
    rows = max(2, VECTORS // columns, power_of_two(TILE // row_bytes + 1) // 2)
    per_processor = 1 if rows * row_bytes > LARGE else PER_PROCESSOR
    fitting = shared_memory(device) // (per_processor * rows * row_bytes)
    num_chosen = 1 if routing is None else routing.chosen.shape[1]
    expert_rows = num_rows if routing is None else num_rows // routing.weights.shape[1]
    programs = ceil_div(per_processor * multiprocessors(device), num_chosen)
    share = ceil_div(expert_rows, programs)
    share += share % 2  # for pairs, and tiles of two
    stream_kernel[(ceil_div(expert_rows, share), num_chosen)](
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
        share,
        WIDTH=width,
        STRIDE=weight.stride(0),
        TOKENS=x.shape[0],
        BLOCK_N=rows,
        BLOCK_K=columns,
        STAGES=max(2, min(fitting, MAX_STAGES if add is None else AFTER)),
        EPILOGUE=int(epilogue),
        NORM=norm is not None,
        SCALED=row_scale is not None,
        ADD=add is not None,
        PER_EXPERT=per_expert,
        ROUTED=routing is not None,
        num_warps=8 if width > WIDE else 4,
        **overlap(device),
    )
    return out
