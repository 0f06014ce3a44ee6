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

RANK_MULTIPLE = 64  # columns of a tile


class DecoderLayer(nn.Module):
    """Attention and FFN around one residual stream."""

    def __init__(self, config: ModelConfig, ops: Ops, index: int, ranks: list[int]) -> None:
        super().__init__()
        self.index = index
        self.attention_norm = Norm(config.hidden_size, config.rms_eps)
        self.attention = Attention(config, ops)
        self.ffn_norm = Norm(config.hidden_size, config.rms_eps)
        self.ffn = build_ffn(config, ops, ranks)

    def forward(
        self,
        residual: Tensor,
        rope: tuple[Tensor, Tensor],
        cache: LayerCache,
        batch: ForwardBatch,
    ) -> Tensor:
        """[T, hidden] -> [T, hidden]."""
        residual = self.attention(residual, self.attention_norm, rope, cache, batch)
        return self.ffn(residual, self.ffn_norm, batch, self.index)


def build_ffn(config: ModelConfig, ops: Ops, ranks: list[int]) -> nn.Module:
    """One layer's FFN; `ranks` are its predictors' ranks, one an expert, empty without any."""
    experts = range(max(1, config.num_experts))
    if not config.activation.is_sparse:
        ffns = [DenseFFN(config, ops) for _ in experts]
        return MoE(config, ops, ffns) if config.num_experts else ffns[0]
    sizes = [(config.hidden_size, rank, config.num_neurons) for rank in ranks]
    predictors = [LowRankPredictor(*size, ops) for size in sizes] or [None for _ in experts]
    blocks = [SparseFFN(config, ops, predictor) for predictor in predictors]
    return MoE(config, ops, blocks) if config.num_experts else blocks[0]


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
            for layer in self.layers:
                moe = layer.get_submodule("ffn")
                if isinstance(moe, MoE) and moe.stacked is None and self.ops.stacks_experts:
                    moe.stack()

    @property
    def num_positions(self) -> int:
        """The longest sequence that it was prepared for."""
        return 0 if self.rope is None else len(self.rope[0])

    @property
    def thresholds(self) -> list[float]:
        """What its predictors' scores must exceed, one a predictor; none: it has no predictors."""
        ffns = [module for module in self.modules() if isinstance(module, SparseFFN)]
        return [ffn.predictor.threshold for ffn in ffns if ffn.predictor is not None]

    def forward(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Write the K/V of the batch's tokens; the logits of those sampled: [S, vocab]."""
        hidden = self.hidden(batch, caches)
        return self.logits(hidden if batch.sample_at is None else hidden[batch.sample_at])

    def hidden(self, batch: ForwardBatch, caches: list[LayerCache]) -> Tensor:
        """Write the K/V of the batch's tokens; their last hidden states: [T, hidden]."""
        assert self.rope is not None, "prepare() comes before forward()"
        residual = self.embed(batch.token_ids)
        for layer, cache in zip(self.layers, caches, strict=True):
            residual = layer(residual, self.rope, cache, batch)
        return residual

    def embed(self, token_ids: Tensor) -> Tensor:
        """[T] -> the residual stream's beginning: [T, hidden]."""
        residual, scale = self.embedding[token_ids], self.config.embed_scale
        return residual if scale == 1.0 else residual * scale

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocab] float32."""
        table = self.embedding if self.lm_head is None else self.lm_head.weight
        logits = self.ops.head(hidden, self.norm.weight, self.norm.eps, table)
        scale = self.config.logit_scale
        return logits if scale == 1.0 else logits * scale
