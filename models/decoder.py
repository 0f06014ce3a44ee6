"""The decoder that every family is a configuration of: embeddings, layers, norm, logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention, LayerCache
from .batch import ForwardBatch
from .config import ModelConfig
from .kernels.ops import Ops
from .layers import Linear, Norm, rope_tables, weight
from .sparsity.ffn import DenseFFN, SparseFFN
from .sparsity.moe import MoE
from .sparsity.predictor import LowRankPredictor

RANK_MULTIPLE = 128  # columns of a tile


class DecoderLayer(nn.Module):
    """Attention and FFN around one residual stream.

    `forward` takes what the block before left to add, so that adding and norming is one op.
    """

    def __init__(self, config: ModelConfig, ops: Ops, index: int, ranks: list[int]) -> None:
        super().__init__()
        self.ops = ops
        self.index = index
        self.residual_scale = config.residual_scale
        self.attention_norm = Norm(config.hidden_size, config.rms_eps)
        self.attention = Attention(config, ops)
        self.ffn_norm = Norm(config.hidden_size, config.rms_eps)
        self.ffn = build_ffn(config, ops, ranks)

    def forward(
        self,
        delta: Tensor | None,
        residual: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
        batch: ForwardBatch,
    ) -> tuple[Tensor, Tensor]:
        """(what is still to be added, residual) -> the same after this layer, [T, hidden] each."""
        x, residual = add_norm(self.ops, delta, residual, self.residual_scale, self.attention_norm)
        delta = self.attention(x, rope, cache, batch)
        x, residual = add_norm(self.ops, delta, residual, self.residual_scale, self.ffn_norm)
        return self.ffn(x, residual, batch, self.index), residual


def add_norm(
    ops: Ops, delta: Tensor | None, residual: Tensor, scale: float, norm: Norm
) -> tuple[Tensor, Tensor]:
    """(norm(residual + scale * delta), residual + scale * delta)."""
    if delta is None:
        return ops.rms_norm(residual, norm.weight, norm.eps), residual
    return ops.add_rms_norm(delta, residual, scale, norm.weight, norm.eps)


def build_ffn(config: ModelConfig, ops: Ops, ranks: list[int]) -> nn.Module:
    """One layer's FFN; `ranks` are its predictors' ranks, one an expert, empty without any."""

    def one(expert: int) -> nn.Module:
        if not config.activation.is_sparse:
            return DenseFFN(config, ops)
        if not ranks:
            return SparseFFN(config, ops)
        shape = (config.hidden_size, ranks[expert], config.num_neurons)
        return SparseFFN(config, ops, LowRankPredictor(*shape, ops))

    if config.num_experts == 0:
        return one(0)
    return MoE(config, ops, [one(expert) for expert in range(config.num_experts)])


class Decoder(nn.Module):
    """Tokens in, logits out. `ranks[layer]` lists the ranks of that layer's predictors."""

    def __init__(self, config: ModelConfig, ops: Ops, ranks: list[list[int]]) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.embedding = weight(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, ops, i, ranks[i]) for i in range(config.num_layers)
        )
        self.norm = Norm(config.hidden_size, config.rms_eps)
        self.lm_head = (
            None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size)
        )
        self.rope: tuple[Tensor, Tensor] | None = None

    def prepare(self, device: torch.device, num_positions: int) -> None:
        """Compute what no checkpoint stores: the rotary tables, up to `num_positions`, and on a GPU
        weights laid out as its kernels read them."""
        cos, sin = rope_tables(self.config.rope, self.config.head_dim, num_positions)
        self.rope = cos.to(device), sin.to(device)
        if device.type == "cuda":
            for module in self.modules():
                if isinstance(module, LowRankPredictor):
                    module.widen(RANK_MULTIPLE)

    @property
    def num_positions(self) -> int:
        """The longest sequence that it was prepared for."""
        return 0 if self.rope is None else len(self.rope[0])

    @property
    def threshold(self) -> float | None:
        """What its predictors' scores must exceed; None: it has no predictors."""
        for module in self.modules():
            if isinstance(module, LowRankPredictor):
                return module.threshold
        return None

    def forward(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Write the K/V of the batch's tokens; the logits of those sampled: [S, vocab]."""
        return self.logits(self.hidden(batch, caches)[batch.sample_at])

    def hidden(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Write the K/V of the batch's tokens; their normed last hidden states: [T, hidden]."""
        assert self.rope is not None, "prepare() comes before forward()"
        config = self.config
        residual = self.embedding[batch.token_ids]
        if config.embed_scale != 1.0:
            residual = residual * config.embed_scale
        delta: Tensor | None = None
        for layer, cache in zip(self.layers, caches, strict=True):
            delta, residual = layer(delta, residual, self.rope, cache, batch)
        return add_norm(self.ops, delta, residual, config.residual_scale, self.norm)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocab] float32."""
        config = self.config
        if config.logit_scale != 1.0:
            hidden = hidden * config.logit_scale
        table = self.embedding if self.lm_head is None else self.lm_head.weight
        return self.ops.linear(hidden, table).float()
