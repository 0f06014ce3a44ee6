"""What a run's predictors keep, and what is truly active: counted window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..decoder import Decoder
from ..neurons import chosen
from ..sequence import Observed, limits_of

PLACES = 4  # of a window whose tokens are followed into unions
SHARES = (0.01, 0.02, 0.05, *(i / 10 for i in range(1, 11)))  # of a layer's neurons, hottest first


@dataclass(frozen=True, slots=True)
class LayerSkipping:
    """Of one layer's neurons (of a mixture's, those of the experts that a token was sent to)."""

    kept: float  # share that is computed
    active: float  # share that is truly not zero
    recall: float  # share of the active ones that is kept
    precision: float  # share of the kept ones that is active


@dataclass(frozen=True, slots=True)
class Skipping:
    """Per layer, and means over layers."""

    layers: list[LayerSkipping]
    union: dict[int, float]  # share that any of so many tokens of different windows keeps
    union_by_layer: dict[int, list[float]]
    hottest: dict[float, float]  # share of what is kept that so many of the neurons account for
    hottest_by_layer: dict[float, list[float]]

    @property
    def kept(self) -> float:
        return _mean([layer.kept for layer in self.layers])

    @property
    def active(self) -> float:
        return _mean([layer.active for layer in self.layers])

    @property
    def recall(self) -> float:
        """Over all layers' active neurons, not a mean of the layers' recalls."""
        found = sum(layer.recall * layer.active for layer in self.layers)
        return found / sum(layer.active for layer in self.layers) if self.active else 1.0

    @property
    def precision(self) -> float:
        found = sum(layer.precision * layer.kept for layer in self.layers)
        return found / sum(layer.kept for layer in self.layers) if self.kept else 1.0

    def as_json(self) -> dict[str, Any]:
        means = {name: getattr(self, name) for name in ("kept", "active", "recall", "precision")}
        return means | asdict(self)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class Unions:
    """How the share that any of several tokens keeps grows with their number.

    The tokens are of different windows, at places drawn once, so that they have little to do with
    each other. One running union for each size and place: no window is held.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self._sizes = sorted(set(sizes))
        self._generator = torch.Generator().manual_seed(seed)
        self._running: dict[int, list[Tensor]] = {}  # size -> per layer [PLACES, M] bool
        self._sums: dict[int, Tensor] = {}  # size -> [layers] float64
        self._num_whole = dict.fromkeys(self._sizes, 0)
        self._num_windows = 0

    def places(self, num_tokens: int) -> Tensor:
        """Tokens of the next window to follow, [PLACES] int64: not the first, which says little."""
        return torch.randint(
            min(1, num_tokens - 1), num_tokens, (PLACES,), generator=self._generator
        )

    def add(self, masks: list[Tensor]) -> None:
        """One window's tokens, per layer [PLACES, M] bool."""
        self._num_windows += 1
        for size in self._sizes:
            begins = (self._num_windows - 1) % size == 0
            before = masks if begins else self._running[size]
            union = [mask | old for mask, old in zip(masks, before, strict=True)]
            self._running[size] = union
            if self._num_windows % size == 0:
                share = torch.stack([layer.double().mean() for layer in union])
                self._sums[size] = self._sums.get(size, torch.zeros_like(share)) + share
                self._num_whole[size] += 1

    def result(self) -> dict[int, list[float]]:
        """Per layer, for every size that there were windows for."""
        return {size: (self._sums[size] / self._num_whole[size]).tolist() for size in self._sums}


class Skipped:
    """Counts what a run skips. What it holds does not grow with the number of windows."""

    def __init__(self, decoder: Decoder, sizes: Sequence[int], seed: int) -> None:
        self._decoder = decoder
        config = decoder.config
        self._computed = config.num_neurons * max(1, config.experts_per_token)
        self._num_tokens = 0
        self._times: list[Tensor] = []  # per layer: how often each neuron was kept, [M] int64
        self._active = [0] * config.num_layers
        self._hits = [0] * config.num_layers
        self._unions = Unions(sizes, seed)

    def add(self, seen: Observed, threshold: float | None) -> None:
        """Count one window's tokens. Layers that skip nothing are not to be counted."""
        num_tokens = len(seen.logits)
        self._num_tokens += num_tokens
        places = self._unions.places(num_tokens).to(seen.logits.device)
        limits = limits_of(threshold, num_tokens, seen.logits.device)
        followed: list[Tensor] = []
        layers = zip(self._decoder.layers, seen.ffn_inputs, strict=True)
        for i, (layer, (x, residual)) in enumerate(layers):
            found = chosen(layer.get_submodule("ffn"), x, residual, limits)
            assert found is not None, f"layer {i} skips nothing"
            mask, truth = found
            times = mask.sum(0)
            if i == len(self._times):
                self._times.append(torch.zeros_like(times))
            self._times[i] += times
            self._active[i] += int(truth.sum())
            self._hits[i] += int((mask & truth).sum())
            followed.append(mask[places])
        self._unions.add(followed)

    def result(self) -> Skipping:
        assert self._num_tokens, "nothing was counted"
        all_neurons = self._num_tokens * self._computed
        layers: list[LayerSkipping] = []
        for times, active, hits in zip(self._times, self._active, self._hits, strict=True):
            kept = int(times.sum())
            layers.append(
                LayerSkipping(
                    kept=kept / all_neurons,
                    active=active / all_neurons,
                    recall=hits / active if active else 1.0,
                    precision=hits / kept if kept else 1.0,
                )
            )
        hottest = [_hottest(times) for times in self._times]
        by_share = {share: [layer[share] for layer in hottest] for share in SHARES}
        union = self._unions.result()
        return Skipping(
            layers,
            {size: _mean(shares) for size, shares in union.items()},
            union,
            {share: _mean(found) for share, found in by_share.items()},
            by_share,
        )


def _hottest(times: Tensor) -> dict[float, float]:
    """Share of all uses that the hottest so many of the neurons account for; 0 if there is none."""
    uses = times.sort(descending=True).values.double().cumsum(0)
    total = uses[-1].item() or 1.0
    return {share: uses[max(1, round(share * len(uses))) - 1].item() / total for share in SHARES}
