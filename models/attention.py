"""Grouped-query attention over paged keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .batch import ForwardBatch
from .config import ModelConfig
from .kernels.ops import Ops
from .layers import Linear, Norm


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's K/V: [pages, K, page_size, D] each; a page's head is one contiguous block."""

    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Norm, project, rotate, store, attend, project, add: [T, hidden] -> [T, hidden]."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.scale = config.head_dim**-0.5
        self.window = config.sliding_window
        self.residual_scale = config.residual_scale
        query_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.qkv = Linear(config.hidden_size, query_size + 2 * kv_size)
        self.out = Linear(query_size, config.hidden_size)

    def forward(
        self,
        residual: Tensor,
        norm: Norm,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
        batch: ForwardBatch,
    ) -> Tensor:
        ops = self.ops
        qkv = ops.norm_linear(residual, norm.weight, norm.eps, self.qkv.weight)
        attended = ops.attention(qkv, *rope, cache.k, cache.v, batch, self.scale, self.window)
        return ops.linear_add(attended, self.out.weight, residual, self.residual_scale)
