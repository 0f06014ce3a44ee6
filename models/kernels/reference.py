"""The meaning of every op, in plain torch: the oracle of the kernel tests, and the path that runs
where no kernel fits.

Letters: T tokens, B requests, H query heads, K key/value heads, D head dim, N neurons.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import FfnMode, ForwardBatch, Routing
from ..config import Activation
from . import reference_pages as pages
from .reference_pages import Gate
from .reference_predict import Scales, above, expert_scores, low_rank_scores

Limits = tuple[Tensor, Tensor, Tensor]  # top_k, top_p, min_p, for `draw`
Choice = Callable[[], Tensor | None]  # finds which neurons are kept, [T, N] bool; None: by the gate


def declines(device: torch.device, dtype: torch.dtype) -> str | None:
    """Never: torch runs everywhere."""
    return None


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`: [T, in], [out, in] -> [T, out]."""
    return F.linear(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in fp32: [T, hidden] -> [T, hidden]."""
    x32 = x.float()
    scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * (x32 * scale).to(x.dtype)


def norm_linear(x: Tensor, norm: Tensor, eps: float, weight: Tensor) -> Tensor:
    """`rms_norm`, then `linear`."""
    return linear(rms_norm(x, norm, eps), weight)


def head(x: Tensor, norm: Tensor, eps: float, table: Tensor) -> Tensor:
    """`norm_linear`, in float32: [T, hidden], [vocab, hidden] -> [T, vocab]."""
    return norm_linear(x, norm, eps, table).float()


def linear_add(x: Tensor, weight: Tensor, residual: Tensor, scale: float) -> Tensor:
    """`residual + scale * linear(x, weight)`: [T, in], [out, in], [T, out] -> [T, out]."""
    return residual + scale * linear(x, weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, half-split as in Llama checkpoints: [T, heads, D], [T, D/2] -> like x."""
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def rotate_and_store(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
) -> Tensor:
    """Rotate queries and keys, write keys and values to their slots, return the queries [T, H, D].

    qkv [T, (H + 2K) * D]; cos, sin [positions, D/2]; caches [pages, K, page_size, D].
    """
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    q, k, v = heads.tensor_split((-2 * num_kv_heads, -num_kv_heads), dim=1)
    cos, sin = cos[batch.positions], sin[batch.positions]
    pages, offsets = batch.slots // page_size, batch.slots % page_size
    k_cache[pages, :, offsets] = rotate(k, cos, sin)
    v_cache[pages, :, offsets] = v
    return rotate(q, cos, sin)


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: ForwardBatch,
    scale: float,
    window: int | None,
) -> Tensor:
    """Causal attention over each request's pages: [T, H, D] -> [T, H * D].

    A token at position p sees the positions (p - window, p] of its own request.
    """
    _, num_kv_heads, page_size, head_dim = k_cache.shape
    out = torch.empty_like(q)
    start = 0
    for row, (num_queries, num_context) in enumerate(
        zip(batch.query_lens, batch.context_lens, strict=True)
    ):
        end = start + num_queries
        pages = batch.page_tables[row, : -(-num_context // page_size)]
        shape = (num_kv_heads, -1, head_dim)
        k = k_cache[pages].transpose(0, 1).reshape(shape)[:, :num_context]
        v = v_cache[pages].transpose(0, 1).reshape(shape)[:, :num_context]
        distance = batch.positions[start:end, None] - torch.arange(num_context, device=q.device)
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        attended = F.scaled_dot_product_attention(
            q[start:end].transpose(0, 1)[None],
            k[None],
            v[None],
            attn_mask=visible,
            scale=scale,
            enable_gqa=True,
        )
        out[start:end] = attended[0].transpose(0, 1)
        start = end
    return out.flatten(1)


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
    """`rotate_and_store`, then `attend`: [T, (H + 2K) * D] -> [T, H * D]."""
    q = rotate_and_store(qkv, cos, sin, k_cache, v_cache, batch)
    return attend(q, k_cache, v_cache, batch, scale, window)


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
    """`attention` over pages whose summaries [pages, K, 2, D] are kept: they are written too, and a
    token that has a budget reads the pages that `reference_pages.choose` gives it."""
    q = rotate_and_store(qkv, cos, sin, k_cache, v_cache, batch)
    pages.summarize(k_cache, summary, batch.slots)
    out = attend(q, k_cache, v_cache, batch, scale, window)
    budgets, page_size = batch.budgets, k_cache.shape[2]
    if budgets is not None:
        chosen = pages.choose(q, summary, gate, batch, budgets, page_size, scale, window)
        caches = (k_cache, v_cache)
        pages.attend_chosen(q, *caches, *chosen, batch, scale, window, out.view(q.shape))
        pages.add_shares(budgets, chosen[1], batch, page_size, window)
    return out


def predict(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float | Tensor,
    scales: Scales | None = None,
) -> Tensor:
    """The neurons that a low-rank predictor keeps: [T, hidden], [r, hidden], [N, r] -> [T, N] bool.

    threshold: one for all, or one a token [T] float32; minus infinity keeps every neuron.
    Published as `round(sigmoid(fc2(relu(fc1(residual)))))`; sigmoid(0) rounds to 0, so it is > 0.
    As there, the hidden layer is of the residual's type; its sums and the scores are accumulated in
    fp32: a bf16 score near zero would flip with the summation order. With scales fc1 and fc2 are
    float8, and a row's sum is multiplied by its scale.
    """
    return above(low_rank_scores(residual, fc1, fc2, scales), threshold)


def sketch(x: Tensor, codes: Tensor, scales: Tensor, threshold: float | Tensor) -> Tensor:
    """The neurons that a coarse copy of their own rows keeps: [T, hidden] -> [T, N] bool.

    codes [N, R, bits, hidden / 32] int32 are R rows of each neuron as `pack` leaves them, scales
    [N, R, groups] their units. A row's score is `x . row`, a neuron's the smallest of its rows':
    dReLU wants gate and up above zero (R = 2), ReLU the gate (R = 1). threshold as in `predict`.
    """
    return above(sketch_scores(x, codes, scales), threshold)


def sketch_scores(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    """What `sketch` holds against the threshold: [T, N] float32."""
    rows = unpack(codes, scales).flatten(0, 1)  # [N * R, hidden]
    return F.linear(x.float(), rows).view(len(x), *codes.shape[:2]).amin(-1)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Numbers of 3 or 4 bits, [.., hidden] integers from 0 -> [.., bits, W] int32, W = hidden / 32.

    Column c is in slot c // W, at place c % W: what lies side by side in memory is side by side in
    x. Word p of a place holds the slots from `32 / bits * p` on, the lowest bits first; of the two
    bits that three slots short of a word leave, the last two slots are made.
    """
    per_word = 32 // bits
    slots = codes.long().reshape(*codes.shape[:-1], 32, -1)  # [.., 32, W]
    shifts = torch.arange(per_word, device=codes.device)[:, None] * bits
    whole = slots[..., : bits * per_word, :].reshape(*codes.shape[:-1], bits, per_word, -1)
    words = (whole << shifts).sum(-2)  # [.., bits, W]
    if bits == 3:
        low, high = slots[..., 30, :], slots[..., 31, :]
        rest = (low & 3, low >> 2 | high >> 2 << 1, high & 3)
        words |= torch.stack(rest, -2) << 30
    return torch.where(words < 1 << 31, words, words - (1 << 32)).int()


def unpack(codes: Tensor, scales: Tensor) -> Tensor:
    """The rows that codes [.., bits, W] and scales [.., groups] stand for: [.., 32 * W] float32.

    Code c stands for `c - (2 ** bits - 1) / 2` of its scale: as many values above zero as below,
    and none of zero. A group is all that `W / groups` places hold.
    """
    bits, per_word = codes.shape[-2], 32 // codes.shape[-2]
    shifts = torch.arange(per_word, device=codes.device, dtype=torch.int32)[:, None] * bits
    numbers = (codes[..., None, :] >> shifts & (1 << bits) - 1).flatten(-3, -2)  # [.., slots, W]
    if bits == 3:
        top = codes >> 30 & 3
        last = (
            top[..., 0, :] | (top[..., 1, :] & 1) << 2,
            top[..., 2, :] | top[..., 1, :] >> 1 << 2,
        )
        numbers = torch.cat((numbers, torch.stack(last, -2)), -2)
    per_group = codes.shape[-1] // scales.shape[-1]
    units = scales.float().repeat_interleave(per_group, -1)[..., None, :]
    return ((numbers - ((1 << bits) - 1) / 2) * units).flatten(-2)


def activate(gate: Tensor, up: Tensor, activation: Activation, threshold: float) -> Tensor:
    """The neurons' values from their gate and up projections, any one shape."""
    match activation:
        case Activation.SILU:
            return F.silu(gate) * up
        case Activation.RELU:
            return gate.relu() * up
        case Activation.FATRELU:
            return torch.where(gate >= threshold, gate, 0) * up
        case Activation.DRELU:
            return gate.relu() * up.relu()


def gated(x: Tensor, gate_up: Tensor, activation: Activation, threshold: float) -> Tensor:
    """Every neuron's value: [T, hidden], [N, 2 * hidden] -> [T, N]."""
    gate, up = linear(x, gate_up.view(-1, x.shape[1])).view(x.shape[0], -1, 2).unbind(-1)
    return activate(gate, up, activation, threshold)


def ffn(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    mask: Tensor | None,
    activation: Activation,
    threshold: float,
    mode: FfnMode,
) -> Tensor:
    """`down(mask * act(gate(x), up(x)))`: [T, hidden] -> [T, hidden].

    Neuron-major weights: gate_up [N, 2 * hidden] holds a neuron's gate row and then its up row,
    down [N, hidden] its output row. mask [T, N] bool, None keeps every neuron. All modes mean the
    same; TOKEN and UNION read only the rows that the mask names.
    """
    if mask is None:
        return gated(x, gate_up, activation, threshold) @ down
    if mode is FfnMode.DENSE:
        return (gated(x, gate_up, activation, threshold) * mask) @ down
    if mode is FfnMode.UNION:
        rows = mask.any(0).nonzero().squeeze(1)
        return (gated(x, gate_up[rows], activation, threshold) * mask[:, rows]) @ down[rows]
    out = torch.empty_like(x)
    for t in range(x.shape[0]):
        rows = mask[t].nonzero().squeeze(1)
        out[t] = (gated(x[t, None], gate_up[rows], activation, threshold) @ down[rows])[0]
    return out


def norm_gated(
    x: Tensor, norm: Tensor, eps: float, gate_up: Tensor, activation: Activation
) -> Tensor:
    """`rms_norm`, then `gated`, for an activation without a threshold."""
    return gated(rms_norm(x, norm, eps), gate_up, activation, 0.0)


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
    """`residual + scale * ffn(rms_norm(residual))`, with the mask that `choose` finds."""
    x = rms_norm(residual, norm, eps)
    return residual + scale * ffn(x, gate_up, down, choose(), activation, threshold, mode)


def route(x: Tensor, router: Tensor, num_chosen: int) -> Routing:
    """Softmax over the experts, the best of them renormalised to one: [T, hidden], [E, hidden]."""
    return best_of(linear(x, router), num_chosen)


def norm_route(
    residual: Tensor, norm: Tensor, eps: float, router: Tensor, num_chosen: int
) -> tuple[Tensor, Routing]:
    """x = rms_norm(residual), and `route` of it."""
    x = rms_norm(residual, norm, eps)
    return x, route(x, router, num_chosen)


def best_of(logits: Tensor, num_chosen: int) -> Routing:
    """The same from the router's logits [T, E]."""
    probabilities = logits.float().softmax(-1)
    best, chosen = probabilities.topk(num_chosen, dim=-1)  # [T, k] each
    weights = torch.zeros_like(probabilities)
    weights.scatter_(1, chosen, best / best.sum(-1, keepdim=True))
    return Routing(weights, chosen)


def predict_experts(
    residual: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    threshold: float | Tensor,
    routing: Routing,
    scales: Scales | None = None,
) -> Tensor:
    """`predict` of E experts as one long layer: [T, hidden], [E * r, hidden], [E * N, r] ->
    [T, E * N] bool. What it says of an expert to whom a token was not sent has no meaning."""
    num_experts = routing.weights.shape[1]
    return above(expert_scores(residual, fc1, fc2, num_experts, scales), threshold)


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
    """`residual + scale * ` the weighted sum of E experts' FFNs, as one long FFN: gate_up
    [E * N, 2 * hidden], down [E * N, hidden], mask [T, E * N] -> [T, hidden]. All modes mean the
    same; without a mask every neuron is kept."""
    weights = routing.weights.repeat_interleave(len(gate_up) // routing.weights.shape[1], 1)
    kept = weights != 0 if mask is None else mask & (weights != 0)
    values = gated(x, gate_up, activation, threshold).float() * weights
    return residual + scale * (values.where(kept, 0).to(x.dtype) @ down)


def most_likely(logits: Tensor) -> Tensor:
    """The likeliest token, of equals the first, of NaN any: [R, vocab] float32 -> [R] int64."""
    return logits.argmax(-1)


def draw(logits: Tensor, temperature: Tensor, points: Tensor, limits: Limits | None) -> Tensor:
    """A token of softmax(logits / temperature): its cumulative distribution inverted, [R] int64.

    logits [R, vocab] and temperature [R] float32; points [R] float64 in [0, 1). limits: top_k [R]
    int64, top_p and min_p [R] float32; off are vocab, 1 and 0. They keep the top_k most likely, of
    these what has min_p of the likeliest one's probability, and of the rest the smallest set that
    reaches top_p of it; who is as likely as the last one kept is kept too.
    """
    scaled = logits / temperature[:, None]
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp()
    if limits is not None:
        weights = torch.where(weights >= _least(weights, *limits), weights, 0)
    cumulated = weights.double().cumsum(-1)
    target = points[:, None] * cumulated[:, -1:]
    index = torch.searchsorted(cumulated, target, right=True).squeeze(1)
    return index.clamp(max=logits.shape[1] - 1)  # a point may round up to all of it


def _least(weights: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The smallest weight that the limits keep: [R, vocab] -> [R, 1]."""
    ordered = weights.sort(-1, descending=True).values
    places = torch.arange(ordered.shape[1], device=ordered.device)
    kept = (places < top_k[:, None]) & (ordered >= min_p[:, None] * ordered[:, :1])
    left = (ordered * kept).double()
    before = left.cumsum(-1) - left
    kept &= (before < top_p[:, None] * left.sum(-1, keepdim=True)) | (top_p[:, None] >= 1)
    last = (kept.sum(-1, keepdim=True) - 1).clamp(min=0)
    return ordered.gather(1, last)
