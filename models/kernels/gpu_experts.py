# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""Triton: all neurons of the experts that tokens were sent to. Pairs of a token and an expert are
sorted by expert, and every tile of a product meets one expert's weights.

Of an expert to whom no token was sent nothing is read.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from ..batch import Routing
from ..config import Activation
from .gpu_epilogue import Epilogue
from .gpu_gated import activate
from .gpu_launch import describes, multiprocessors, overlap, shared_memory
from .gpu_pairs import Pairs, added, by_expert
from .reference_predict import Scales
from .sizes import ceil_div, power_of_two_in


@triton.jit
def product_kernel(
    x_ptr,
    weight,
    row_scale_ptr,
    mask_ptr,
    tokens_ptr,
    tiles_ptr,
    out_ptr,
    threshold,
    num_columns,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BY_TOKEN: tl.constexpr,
    ACROSS: tl.constexpr,
    DESCRIBED: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    SCALED: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """A tile of pairs over a tile of their expert's weights, [num_columns, WIDTH] of each expert;
    ACROSS: [WIDTH, num_columns]. BY_TOKEN: x is [T, WIDTH], and not a row for each pair. A mask is
    [T, EXPERTS * neurons]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    num_tiles = tl.num_programs(0)
    expert = tl.load(tiles_ptr + tl.program_id(0))
    first = tl.load(tiles_ptr + num_tiles + tl.program_id(0))
    end = tl.load(tiles_ptr + 2 * num_tiles + tl.program_id(0))
    if first >= end:
        return
    pair, column = first + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS
    n, k = column + tl.arange(0, COLUMNS), tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + pair, mask=pair < end, other=0).to(tl.int64)
    row = x_ptr + (token if BY_TOKEN else pair.to(tl.int64))[:, None] * WIDTH
    if not DESCRIBED:
        weight += expert.to(tl.int64) * WIDTH * num_columns
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in tl.range(0, WIDTH, BLOCK, num_stages=STAGES):
        at = start + k
        x = tl.load(row + at[None, :], mask=(pair < end)[:, None], other=0.0)
        if DESCRIBED and ACROSS:
            w = weight.load([expert * WIDTH + start, column])
        elif DESCRIBED:
            w = weight.load([expert * num_columns + column, start]).T
        else:
            place = n[None, :] * WIDTH + at[:, None]
            if ACROSS:
                place = n[None, :] + at[:, None] * num_columns
            w = tl.load(weight + place, mask=(n < num_columns)[None, :], other=0.0)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if SCALED:
        scale = row_scale_ptr + expert * num_columns + n
        acc *= tl.load(scale, mask=n < num_columns, other=0.0)[None, :]
    if EPILOGUE == 1:
        acc = tl.maximum(acc, 0.0)
    if EPILOGUE == 3:
        gate, up = tl.split(tl.reshape(acc, (ROWS, COLUMNS // 2, 2)))
        acc = activate(gate, up, threshold, ACTIVATION)
        n = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        num_columns = num_columns // 2
    inside = (pair < end)[:, None] & (n < num_columns)[None, :]
    at_token = token[:, None] * (EXPERTS * num_columns) + (expert * num_columns + n)[None, :]
    if MASKED:
        acc = tl.where(tl.load(mask_ptr + at_token, mask=inside, other=0) != 0, acc, 0.0)
    if EPILOGUE == 2:
        tl.store(out_ptr + at_token, (acc > threshold).to(tl.uint8), mask=inside)
    else:
        out = out_ptr + pair.to(tl.int64)[:, None] * num_columns + n[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Tiles:
    """Pairs and columns of a tile, how many products deep its blocks are, blocks under way."""

    rows: int
    columns: int
    block: int
    stages: int
    warps: int


def tiles_for(routing: Routing, dtype: torch.dtype) -> Tiles:
    """The fastest measured on an H200 at TurboSparse-Mixtral-47B's shape."""
    if dtype.itemsize > 2:
        return Tiles(16, 32, 32, 2, 4)
    if routing.chosen.numel() <= 48 * routing.weights.shape[1]:
        return Tiles(64, 128, 64, 4, 4)
    return Tiles(128, 256, 64, 4, 8)


def predict(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float,
    routing: Routing,
    scales: Scales | None = None,
) -> Tensor:
    """`reference.predict_experts`; of weights in 8 bits, which are exact in 16, one layer's are in
    16 meanwhile. For a hidden size and a rank that `fill_tiles`."""
    tiles, (scale1, scale2) = tiles_for(routing, residual.dtype), scales or (None, None)
    pairs = by_expert(routing, tiles.rows)
    fc1, fc2 = fc1.to(residual.dtype), fc2.to(residual.dtype)
    num_tokens, rank = residual.shape[0], fc2.shape[1]
    hidden = residual.new_empty(len(pairs.tokens), rank)
    mask = torch.empty(num_tokens, len(fc2), dtype=torch.uint8, device=residual.device)
    _multiply(residual, fc1, pairs, tiles, hidden, Epilogue.RELU, by_token=True, row_scale=scale1)
    _multiply(hidden, fc2, pairs, tiles, mask, Epilogue.MASK, threshold=threshold, row_scale=scale2)
    return mask.view(torch.bool)


def ffn(
    x: Tensor,
    residual: Tensor,
    scale: float,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    routing: Routing,
) -> Tensor:
    """`reference.experts`, for a hidden size and neurons that `fill_tiles`; without a mask every
    neuron is kept."""
    tiles, hidden = tiles_for(routing, x.dtype), x.shape[1]
    pairs = by_expert(routing, tiles.rows)
    num_neurons = len(down) // routing.weights.shape[1]
    values = x.new_empty(len(pairs.tokens), num_neurons)
    results = x.new_empty(len(pairs.tokens), hidden)
    _multiply(
        x, gate_up.view(-1, hidden), pairs, tiles, values, Epilogue.GATED, by_token=True,
        mask=None if mask is None else mask.view(torch.uint8), activation=activation,
        threshold=threshold,
    )  # fmt: skip
    _multiply(values, down, pairs, tiles, results, Epilogue.NONE, across=True)
    return added(residual, scale, results, pairs, routing)


def _multiply(
    x: Tensor,
    weight: Tensor,
    pairs: Pairs,
    tiles: Tiles,
    out: Tensor,
    epilogue: Epilogue,
    *,
    by_token: bool = False,
    across: bool = False,
    mask: Tensor | None = None,
    activation: Activation = Activation.DRELU,
    threshold: float = 0.0,
    row_scale: Tensor | None = None,
) -> None:
    """A row for each pair, or of each token, x [., WIDTH], by its expert's part of the weights
    [E * columns, WIDTH]; `across`: [E * WIDTH, columns]."""
    device, width = x.device, x.shape[1]
    num_columns = weight.shape[1] if across else len(weight) // pairs.num_experts
    num_tiles, columns = pairs.tiles.shape[1], tiles.columns
    while columns > 64 and num_tiles * ceil_div(num_columns, columns) < multiprocessors(device):
        columns //= 2
    block = min(tiles.block, power_of_two_in(width))
    held = (tiles.rows + columns) * block * x.element_size()
    described = describes(device)
    box = [block, columns] if across else [columns, block]
    product_kernel[(num_tiles, ceil_div(num_columns, columns))](
        x,
        TensorDescriptor.from_tensor(weight, box) if described else weight,
        row_scale,
        mask,
        pairs.tokens,
        pairs.tiles,
        out,
        threshold,
        num_columns,
        EXPERTS=pairs.num_experts,
        WIDTH=width,
        BY_TOKEN=by_token,
        ACROSS=across,
        DESCRIBED=described,
        EPILOGUE=int(epilogue),
        ACTIVATION=activation.value,
        SCALED=row_scale is not None,
        MASKED=mask is not None,
        ROWS=tiles.rows,
        COLUMNS=columns,
        BLOCK=block,
        STAGES=max(1, min(tiles.stages, shared_memory(device) // held)),
        num_warps=tiles.warps,
        **overlap(device),
    )
