"""A mixture of expert FFNs, each with neurons of its own to skip."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..batch import ForwardBatch
from ..config import ModelConfig
from ..kernels.ops import Ops
from ..layers import Linear


class MoE(nn.Module):
    """Mixtral's router: softmax over all experts, the best k, renormalised to one.

    A token's active fraction is of the neurons of the k experts that a token chose. `nonzero`
    makes the host wait for the router, so a step of such a model is no CUDA graph.
    """

    def __init__(self, config: ModelConfig, ops: Ops, experts: list[nn.Module]) -> None:
        super().__init__()
        self.ops = ops
        self.num_chosen = config.experts_per_token
        self.router = Linear(config.hidden_size, config.num_experts)
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor, residual: Tensor, batch: ForwardBatch, layer: int) -> Tensor:
        probabilities = self.ops.linear(x, self.router.weight).float().softmax(-1)
        weights, chosen = probabilities.topk(self.num_chosen, dim=-1)  # [T, k] each
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, rank = (chosen == i).nonzero(as_tuple=True)
            if token.numel():
                part = batch.of(token)
                y = expert(x[token], residual[token], part, layer)
                out.index_add_(0, token, y * weights[token, rank, None])
                if batch.active is not None and part.active is not None:
                    batch.active[layer].index_add_(0, token, part.active[layer] / self.num_chosen)
        return out
