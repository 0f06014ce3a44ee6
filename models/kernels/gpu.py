"""GPU kernels in Triton: the ops of `reference` for a CUDA device, none of which asks the host
anything about what it computes.

Dense products of many tokens are cuBLAS's. TOKEN and UNION are one path: only the rows that some
token keeps are read, and each token's own mask is applied.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import FfnMode, ForwardBatch, PageBudgets, Routing
from ..config import Activation
from . import (
    gpu_attention,
    gpu_best,
    gpu_chosen,
    gpu_draw,
    gpu_experts,
    gpu_ffn_few,
    gpu_ffn_one,
    gpu_gated,
    gpu_gates,
    gpu_linear,
    gpu_norm,
    gpu_pages,
    gpu_predict,
    gpu_prefill,
    gpu_rotary,
    gpu_sketch,
    gpu_stream_ffn,
    gpu_summary,
    reference,
    reference_pages,
)
from .gpu_epilogue import Epilogue
from .gpu_launch import aside
from .reference import Choice, Limits
from .reference_pages import Gate
from .reference_predict import Scales
from .sizes import fill_tiles

# Where it may, cuBLAS adds the parts of a split product in 16 bits: a neuron's score next to zero
# then changes its side.
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

ASIDE = 256  # tokens of the largest graphs; beyond, and without one, a stream costs what it gains
FEW, NARROW = 16, 4096  # tokens, and rows of a weight that twice as many are few for


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run there; None: they can."""
    major, minor = torch.cuda.get_device_capability(device)
    if dtype is torch.bfloat16 and major < 8:
        return f"bfloat16 needs compute capability 8.0, not {major}.{minor}"
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return gpu_norm.rms_norm(x, weight, eps)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Up to 16 tokens in Triton; from there on cuBLAS reads the weights as fast."""
    if _few(x, weight):
        return gpu_linear.multiply(x, weight, _rows(x, weight.shape[0]))
    return F.linear(x, weight)


def norm_linear(x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
    if _few(x, weight):
        return gpu_linear.multiply(x, weight, _rows(x, weight.shape[0]), norm=norm, eps=eps)
    return F.linear(rms_norm(x, norm, eps), weight)


def head(x: Tensor, norm: Tensor, eps: float, table: Tensor) -> Tensor:
    """Sums in fp32 are not rounded before the logits are."""
    if not _few(x, table):
        x = rms_norm(x, norm, eps)
        half = x.dtype is not torch.float32
        return torch.mm(x, table.T, out_dtype=torch.float32) if half else x @ table.T
    out = torch.empty(x.shape[0], table.shape[0], dtype=torch.float32, device=x.device)
    return gpu_linear.multiply(x, table, out, norm=norm, eps=eps)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor, scale: float) -> Tensor:
    if _few(x, weight):
        return gpu_linear.multiply(x, weight, torch.empty_like(residual), add=residual, scale=scale)
    return torch.addmm(residual, x, weight.T, alpha=scale)


def attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """One kernel where every token is its request's only one; pieces of prompts are stored first,
    and attend in blocks of queries."""
    caches, tables = (k_cache, v_cache), batch.page_tables
    if batch.query_starts is None:
        places = (batch.positions, batch.slots, batch.request_ids, tables)
        return gpu_attention.decode(qkv, cos, sin, *caches, *places, scale, window)
    places = (batch.positions, batch.slots)
    q = gpu_rotary.rotate_and_store(qkv, cos, sin, *caches, *places)
    places = (batch.positions, batch.query_starts, tables)
    return gpu_prefill.attend(q, *caches, *places, scale, window)


def sparse_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    summary: Tensor,
    gate: Gate | None,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """Where nobody has a page budget `attention`, and summaries. Pieces of prompts attend to all of
    their context, then the tokens that have budgets over again, by themselves."""
    caches, budgets = (k_cache, v_cache), batch.budgets
    if batch.query_starts is None:
        if budgets is None:
            places = (batch.positions, batch.slots, batch.request_ids, batch.page_tables)
            return gpu_attention.decode(qkv, cos, sin, *caches, *places, scale, window, summary)
        return _attend_chosen(qkv, cos, sin, *caches, summary, gate, batch, budgets, scale, window)
    out = attention(qkv, cos, sin, *caches, batch, scale, window)
    gpu_summary.summarize(k_cache, summary, batch.slots)
    if budgets is None:
        return out
    assert budgets.tokens is not None, "a mixed step without its list of tokens"
    tokens, own = budgets.tokens, budgets.of(budgets.tokens)
    part = batch.only(tokens)
    part = replace(part, slots=torch.full_like(part.slots, -1))  # stored already
    rest = (*caches, summary, gate, part, own, scale, window)
    chosen = _attend_chosen(qkv[tokens], cos, sin, *rest)
    if budgets.read is not None and own.read is not None:
        budgets.read[tokens] = own.read
    return out.index_copy_(0, tokens, chosen)


def _attend_chosen(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    summary: Tensor,
    gate: Gate | None,
    batch: ForwardBatch,
    budgets: PageBudgets,
    scale: float,
    window: int | None,
) -> Tensor:
    """Over the pages that budgets allow: [T, (H + 2K) * D] -> [T, H * D]."""
    rotary, caches, tables = (qkv, cos, sin), (k_cache, v_cache), batch.page_tables
    learned = None
    if gate is not None:
        learned = gpu_gates.learned(*rotary, batch.positions, gate, budgets.gated)
    places = (batch.positions, batch.slots, batch.request_ids, tables)
    rest = (*caches, summary, *places, budgets, scale, window)
    pages, counts = gpu_pages.choose(*rotary, learned, *rest)
    reference_pages.add_shares(budgets, counts, batch, k_cache.shape[2], window)
    places = (batch.positions, batch.request_ids, tables)
    rest = (*places, budgets.pages, pages, counts, scale, window)
    return gpu_chosen.attend(*rotary, *caches, *rest)


def predict(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float | Tensor,
    scales: Scales | None = None,
) -> Tensor:
    return gpu_predict.predict(residual, fc1, fc2, threshold, scales=scales)


def sketch(x: Tensor, codes: Tensor, scales: Tensor, threshold: float | Tensor) -> Tensor:
    return gpu_sketch.sketch(x, codes, scales, threshold)


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    projected = linear(x, gate_up.view(-1, x.shape[1]))
    return gpu_gated.activated(projected, None, activation, threshold)


def norm_gated(
    x: Tensor, norm: Tensor, eps: float, gate_up: Tensor, activation: Activation
) -> Tensor:
    rows = gate_up.view(-1, x.shape[1])
    if not _few(x, rows) or activation is not Activation.SILU:
        return gated(rms_norm(x, norm, eps), gate_up, activation, 0.0)
    out = _rows(x, gate_up.shape[0])
    return gpu_linear.multiply(x, rows, out, Epilogue.GATED, norm=norm, eps=eps)


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    if _skips(x, mode):
        return _sparse(x, gate_up, down, mask, activation, threshold)
    return _all_values(x, gate_up, mask, activation, threshold) @ down


def ffn_add(
    residual: Tensor,
    norm: Tensor,
    eps: float,
    gate_up: Tensor,
    down: Tensor,
    choose: Choice,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
    scale: float,
) -> Tensor:
    """Which neurons are kept is found while all are computed, where that is worth a stream."""
    weights, is_skipping = (gate_up, down), _skips(residual, mode)
    if not is_skipping and gpu_ffn_few.MAX_TOKENS < residual.shape[0] <= ASIDE:
        rows = gate_up.view(-1, residual.shape[1])
        mask, projected = aside(
            residual.device, choose, lambda: norm_linear(residual, norm, eps, rows)
        )
        values = gpu_gated.activated(projected, mask, activation, threshold)
        return torch.addmm(residual, values, down, alpha=scale)
    mask = choose()
    if is_skipping:
        return _sparse(
            residual, *weights, mask, activation, threshold,
            norm=norm, eps=eps, add=residual, scale=scale,
        )  # fmt: skip
    x = rms_norm(residual, norm, eps)
    values = _all_values(x, gate_up, mask, activation, threshold)
    return torch.addmm(residual, values, down, alpha=scale)


def route(x: Tensor, router: Tensor, num_chosen: int) -> Routing:
    return gpu_norm.route(x, router, num_chosen)


def norm_route(
    residual: Tensor, norm: Tensor, eps: float, router: Tensor, num_chosen: int
) -> tuple[Tensor, Routing]:
    return gpu_norm.norm_route(residual, norm, eps, router, num_chosen)


def predict_experts(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float | Tensor,
    routing: Routing,
    scales: Scales | None = None,
) -> Tensor:
    if isinstance(threshold, Tensor):  # who asks for a threshold of its own runs without a graph
        return reference.predict_experts(residual, fc1, fc2, threshold, routing, scales)
    num_tokens, num_experts = routing.weights.shape
    ranks, neurons = fc1.shape[0] // num_experts, fc2.shape[0] // num_experts
    is_few = num_tokens <= gpu_linear.MAX_TOKENS and fill_tiles(ranks, neurons)
    if num_tokens == 1 or is_few:
        return gpu_predict.predict(residual, fc1, fc2, threshold, routing, scales=scales)
    if not fill_tiles(residual.shape[1], ranks):
        return reference.predict_experts(residual, fc1, fc2, threshold, routing, scales)
    return gpu_experts.predict(residual, fc1, fc2, threshold, routing, scales)


def experts(
    x: Tensor,
    residual: Tensor,
    scale: float,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
    routing: Routing,
) -> Tensor:
    """DENSE computes all neurons of the experts that a token was sent to, and of no others; so does
    every mode where no mask says what may be skipped."""
    weights, rest = (gate_up, down), (activation, threshold)
    if mask is not None and _skips(x, mode):
        kernels = gpu_ffn_one if x.shape[0] == 1 else gpu_ffn_few
        return kernels.sparse(x, *weights, mask, *rest, routing=routing, add=residual, scale=scale)
    if not fill_tiles(x.shape[1], len(down) // routing.weights.shape[1]):
        return reference.experts(x, residual, scale, *weights, mask, *rest, mode, routing)
    return gpu_experts.ffn(x, residual, scale, *weights, mask, *rest, routing)


def most_likely(logits: Tensor) -> Tensor:
    return gpu_best.most_likely(logits)


def draw(logits: Tensor, temperature: Tensor, points: Tensor, limits: Limits | None) -> Tensor:
    return gpu_draw.draw(logits, temperature, points, limits)


def _few(x: Tensor, weight: Tensor) -> bool:
    limit = 2 * FEW if weight.shape[0] <= NARROW else FEW
    return x.shape[0] <= limit and gpu_linear.fits(x, weight)


def _skips(x: Tensor, mode: FfnMode) -> bool:
    """Whether the neurons that no token keeps are not read."""
    if mode is FfnMode.DENSE:
        return False
    return x.shape[0] == 1 or gpu_ffn_few.fits(*x.shape)


def _sparse(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    add: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Without a mask the gate is one: it is computed first, and names the rows to read."""
    if mask is None:
        if norm is not None:
            x, norm = rms_norm(x, norm, eps), None
        mask = gpu_predict.opened(x, gate_up[:, : x.shape[1]], activation, threshold)
    kernels = gpu_ffn_one if x.shape[0] <= gpu_ffn_one.MAX_TOKENS else gpu_ffn_few
    if gpu_stream_ffn.fits(x, gate_up, down):
        kernels = gpu_stream_ffn
    return kernels.sparse(
        x, gate_up, down, mask, activation, threshold, norm=norm, eps=eps, add=add, scale=scale
    )


def _all_values(
    x: Tensor, gate_up: Tensor, mask: Tensor | None, activation: Activation, threshold: float
) -> Tensor:
    projected = F.linear(x, gate_up.view(-1, x.shape[1]))
    return gpu_gated.activated(projected, mask, activation, threshold)


def _rows(x: Tensor, width: int) -> Tensor:
    return torch.empty(x.shape[0], width, dtype=x.dtype, device=x.device)
