"""Grouped-query attention over paged keys and values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .batch import ForwardBatch
from .config import ModelConfig
from .kernels.ops import Ops
from .layers import Linear, Norm
from .sparsity.blocks import Gate


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's K/V: [pages, K, page_size, D] each; a page's head is one contiguous block.

    `summary` [pages, K, 2, D] is of the keys, where tokens may choose the pages that they read.
    """

    k: Tensor
    v: Tensor
    summary: Tensor | None = None


class Attention(nn.Module):
    """Norm, project, rotate, store, attend, project, add: [T, hidden] -> [T, hidden]."""

    gate: Gate | None

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
        self.gate = None

    def forward(
        self,
        residual: Tensor,
        norm: Norm,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
        batch: ForwardBatch,
    ) -> Tensor:
        qkv = self.ops.norm_linear(residual, norm.weight, norm.eps, self.qkv.weight)
        attended = self.attend(qkv, rope, cache, batch)
        return self.ops.linear_add(attended, self.out.weight, residual, self.residual_scale)

    def attend(
        self, qkv: Tensor, rope: tuple[Tensor, Tensor], cache: LayerCache, batch: ForwardBatch
    ) -> Tensor:
        """Rotate, store, attend: [T, (H + 2K) * D] -> [T, H * D]."""
        places = (batch, self.scale, self.window)
        if cache.summary is None:
            return self.ops.attention(qkv, *rope, cache.k, cache.v, *places)
        gate = None if self.gate is None else self.gate.projections
        caches = (cache.k, cache.v, cache.summary)
        return self.ops.sparse_attention(qkv, *rope, *caches, gate, *places)
