"""A mixture of expert FFNs, each with neurons of its own to skip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..batch import ForwardBatch, Routing
from ..config import ModelConfig
from ..kernels.ops import Ops
from ..kernels.reference_predict import Scales
from ..layers import Linear, Norm
from .ffn import DenseFFN, SparseFFN
from .predictor import LowRankPredictor, deciding


@dataclass(frozen=True, slots=True)
class Stacked:
    """All experts' weights as one long FFN's, whose rows are theirs one after the other."""

    fc1: Tensor  # [E * r, hidden]
    fc2: Tensor  # [E * N, r]
    scales: Scales | None  # of the rows of both, where they are float8
    gate_up: Tensor  # [E * N, 2 * hidden]
    down: Tensor  # [E * N, hidden]


class MoE(nn.Module):
    """Mixtral's router: softmax over all experts, the best k, renormalised to one.

    A token's active fraction is of the neurons of the k experts that it chose, a step's union
    fraction of those of all experts. Once stacked, the experts are computed as one FFN, some of
    whose neurons are closed to a token. Otherwise they take turns, and `nonzero` makes the host
    wait for the router: such a step is no CUDA graph.
    """

    def __init__(
        self, config: ModelConfig, ops: Ops, experts: list[SparseFFN] | list[DenseFFN]
    ) -> None:
        super().__init__()
        self.ops = ops
        self.num_chosen = config.experts_per_token
        self.residual_scale = config.residual_scale
        self.router = Linear(config.hidden_size, config.num_experts)
        self.experts = nn.ModuleList(experts)
        self.stacked: Stacked | None = None

    def forward(self, residual: Tensor, norm: Norm, batch: ForwardBatch, layer: int) -> Tensor:
        """residual + scale * the experts' weighted results of norm(residual)."""
        router = (self.router.weight, self.num_chosen)
        x, routing = self.ops.norm_route(residual, norm.weight, norm.eps, *router)
        if self.stacked is not None:
            return self._together(x, residual, routing, self.stacked, batch, layer)
        out = self._in_turn(x, residual, norm, routing, batch, layer)
        return residual + self.residual_scale * out

    def stack(self) -> None:
        """Lay the experts' weights one after the other; they become views of the whole."""
        experts, predictors = self._parts()
        if len(predictors) < len(self.experts):
            return
        rank = max(predictor.fc1.weight.shape[0] for predictor in predictors)
        for predictor in predictors:
            predictor.widen(rank)
        gate_up, down = (
            _joined([(expert, name) for expert in experts]) for name in ("gate_up", "down")
        )
        self.stacked = Stacked(*_predictors_joined(predictors), gate_up, down)

    def round_predictors(self) -> None:
        """Those of all experts in float8; they stay stacked, if they were."""
        predictors = self._parts()[1]
        for predictor in predictors:
            predictor.round()
        if self.stacked is not None:
            fc1, fc2, scales = _predictors_joined(predictors)
            self.stacked = replace(self.stacked, fc1=fc1, fc2=fc2, scales=scales)

    def _parts(self) -> tuple[list[SparseFFN], list[LowRankPredictor]]:
        """The experts that may skip neurons, and what chooses theirs."""
        experts = [expert for expert in self.experts if isinstance(expert, SparseFFN)]
        predictors = [e.predictor for e in experts if isinstance(e.predictor, LowRankPredictor)]
        return experts, predictors

    def _together(
        self,
        x: Tensor,
        residual: Tensor,
        routing: Routing,
        stacked: Stacked,
        batch: ForwardBatch,
        layer: int,
    ) -> Tensor:
        first = self.experts[0]
        assert isinstance(first, SparseFFN)
        assert isinstance(first.predictor, LowRankPredictor)
        threshold = deciding(first.predictor.threshold, batch.thresholds)
        mask = self.ops.predict_experts(
            residual, stacked.fc1, stacked.fc2, threshold, routing, stacked.scales
        )
        if batch.active is not None:
            sent = (routing.weights != 0)[:, :, None]
            kept = mask.view(len(x), len(self.experts), -1).where(sent, False)
            batch.active[layer] += kept.float().mean(-1).sum(-1) / self.num_chosen
            if batch.union is not None:
                batch.union[layer] += kept.any(0).float().mean()
        return self.ops.experts(
            x,
            residual,
            self.residual_scale,
            stacked.gate_up,
            stacked.down,
            mask,
            first.activation,
            first.threshold,
            batch.ffn_mode,
            routing,
        )

    def _in_turn(
        self,
        x: Tensor,
        residual: Tensor,
        norm: Norm,
        routing: Routing,
        batch: ForwardBatch,
        layer: int,
    ) -> Tensor:
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            assert isinstance(expert, SparseFFN | DenseFFN)
            token = routing.weights[:, i].nonzero()[:, 0]
            if token.numel():
                part = batch.of(token)
                y = expert.expert(x[token], residual[token], norm, part, layer)
                out.index_add_(0, token, y * routing.weights[token, i, None].to(y.dtype))
                if batch.active is not None and part.active is not None:
                    batch.active[layer].index_add_(0, token, part.active[layer] / self.num_chosen)
        if batch.union is not None:
            batch.union[layer] /= len(self.experts)
        return out


def _predictors_joined(
    predictors: list[LowRankPredictor],
) -> tuple[Tensor, Tensor, Scales | None]:
    """fc1, fc2 and their rows' scales of all experts."""
    firsts, seconds = [p.fc1 for p in predictors], [p.fc2 for p in predictors]
    fc1, fc2 = (_joined([(layer, "weight") for layer in part]) for part in (firsts, seconds))
    if predictors[0].scales is None:
        return fc1, fc2, None
    scale1, scale2 = (_joined([(layer, "scale") for layer in part]) for part in (firsts, seconds))
    return fc1, fc2, (scale1, scale2)


def _joined(places: list[tuple[nn.Module, str]]) -> Tensor:
    """The named weights one after the other; each becomes its own part of the result."""
    parts: list[Tensor] = [getattr(module, name) for module, name in places]
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    start = 0
    for (module, name), part in zip(places, parts, strict=True):
        view = whole[start : start + len(part)].copy_(part)
        setattr(module, name, nn.Parameter(view, requires_grad=False))
        start += len(part)
    return whole
