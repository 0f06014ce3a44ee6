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
class Predictors:
    """All experts' as one, whose rows are theirs one after the other."""

    fc1: Tensor  # [E * r, hidden]
    fc2: Tensor  # [E * N, r]
    scales: Scales | None  # of the rows of both, where they are float8
    threshold: float


@dataclass(frozen=True, slots=True)
class Stacked:
    """All experts' weights as one long FFN's, whose rows are theirs one after the other."""

    gate_up: Tensor  # [E * N, 2 * hidden]
    down: Tensor  # [E * N, hidden]
    predictors: Predictors | None  # None: every neuron is computed


class MoE(nn.Module):
    """Mixtral's router: softmax over all experts, the best k, renormalised to one.

    A token's active fraction is of the neurons of the k experts that it chose, a step's union
    fraction of those of all experts. Once stacked, the experts are computed as one FFN, some of
    whose neurons are closed to a token. Otherwise they take turns, and `nonzero` makes the host
    wait for the router: on a GPU, as graphs need it, all are stacked.
    """

    def __init__(
        self, config: ModelConfig, ops: Ops, experts: list[SparseFFN] | list[DenseFFN]
    ) -> None:
        super().__init__()
        self.ops = ops
        self.activation = config.activation
        self.threshold = config.threshold
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
        dense = [expert for expert in self.experts if isinstance(expert, DenseFFN)]
        sparse, predictors = self._parts()
        if len(dense) == len(self.experts):
            gate_up = _joined([(expert, "gate_up") for expert in dense])
            down = _joined([(expert.down, "weight") for expert in dense], turned=True)
            self.stacked = Stacked(gate_up, down, None)
        else:
            assert len(predictors) == len(self.experts), "experts of two kinds"
            rank = max(predictor.fc1.weight.shape[0] for predictor in predictors)
            for predictor in predictors:
                predictor.widen(rank)
            gate_up, down = (
                _joined([(expert, name) for expert in sparse]) for name in ("gate_up", "down")
            )
            self.stacked = Stacked(gate_up, down, _predictors_joined(predictors))

    def round_predictors(self) -> None:
        """Those of all experts in float8; they stay stacked, if they were."""
        predictors = self._parts()[1]
        for predictor in predictors:
            predictor.round()
        if self.stacked is not None:
            self.stacked = replace(self.stacked, predictors=_predictors_joined(predictors))

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
        mask = None
        if stacked.predictors is not None:
            mask = self._mask(residual, routing, stacked.predictors, batch, layer)
        return self.ops.experts(
            x,
            residual,
            self.residual_scale,
            stacked.gate_up,
            stacked.down,
            mask,
            self.activation,
            self.threshold,
            batch.ffn_mode,
            routing,
        )

    def _mask(
        self,
        residual: Tensor,
        routing: Routing,
        predictors: Predictors,
        batch: ForwardBatch,
        layer: int,
    ) -> Tensor:
        """[T, E * N] bool, what is to be computed of the experts that a token was sent to."""
        threshold = deciding(predictors.threshold, batch.thresholds)
        mask = self.ops.predict_experts(
            residual, predictors.fc1, predictors.fc2, threshold, routing, predictors.scales
        )
        if batch.active is not None:
            sent = (routing.weights != 0)[:, :, None]
            kept = mask.view(len(residual), len(self.experts), -1).where(sent, False)
            batch.active[layer] += kept.float().mean(-1).sum(-1) / self.num_chosen
            if batch.union is not None:
                batch.union[layer] += kept.any(0).float().mean()
        return mask

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


def _predictors_joined(predictors: list[LowRankPredictor]) -> Predictors:
    firsts, seconds = [p.fc1 for p in predictors], [p.fc2 for p in predictors]
    fc1, fc2 = (_joined([(layer, "weight") for layer in part]) for part in (firsts, seconds))
    scales = None
    if predictors[0].scales is not None:
        scale1, scale2 = (_joined([(each, "scale") for each in part]) for part in (firsts, seconds))
        scales = scale1, scale2
    return Predictors(fc1, fc2, scales, predictors[0].threshold)


def _joined(places: list[tuple[nn.Module, str]], *, turned: bool = False) -> Tensor:
    """The named weights one after the other, each one's columns as rows where they are turned; each
    becomes its own part of the result."""
    parts: list[Tensor] = [getattr(module, name) for module, name in places]
    parts = [part.T for part in parts] if turned else parts
    whole = parts[0].new_empty(sum(len(part) for part in parts), *parts[0].shape[1:])
    start = 0
    for (module, name), part in zip(places, parts, strict=True):
        view = whole[start : start + len(part)].copy_(part)
        own = view.T if turned else view
        setattr(module, name, nn.Parameter(own, requires_grad=False))
        start += len(part)
    return whole
