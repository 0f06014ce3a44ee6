"""What a choice of pages costs a model: attention recalled, and what comes out, on a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import ModelError
from ..decoder import Decoder
from ..kernels.reference_pages import MIN_BUDGET, Gate, estimate, keep, probe
from ..progress import track
from ..sequence import Reads
from ..sparsity.gates import attention_of
from .fidelity import Measured, Run, compare, finite
from .page_mass import Seen, complete_pages, look, sample_places

BOUND, GATE, BEST = "bound", "gate", "best"
KINDS = (BOUND, GATE)
PLACES = 32  # of a window and layer, where the attention that is recalled is added up


@dataclass(frozen=True, slots=True)
class Recall:
    """Shares of the attention that fall on what is read."""

    recall: float  # mean over layers
    recall_by_layer: list[float]

    @classmethod
    def of(cls, windows: list[Tensor]) -> Recall:
        """The mean of the windows' [layers]."""
        mean = torch.stack(windows).double().mean(0)
        return cls(mean.mean().item(), [float(share) for share in mean])


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind of choice at one budget, held against attention to all of the context."""

    recalled: Recall
    measured: Measured
    perplexity_change: float  # 0.01: one in a hundred worse

    @property
    def nats(self) -> float:
        """KL(full || this) of the next token."""
        assert self.measured.agreement is not None
        return self.measured.agreement.nats

    def as_json(self) -> dict[str, Any]:
        assert self.measured.agreement is not None
        return asdict(self.recalled) | {
            "perplexity": finite(self.measured.perplexity),
            "perplexity_change": self.perplexity_change,
            "nats": self.nats,
            "same_best": self.measured.agreement.same_best,
        }

    def __str__(self) -> str:
        return (
            f"{self.recalled.recall:.1%} of the attention recalled, perplexity "
            f"{self.perplexity_change:+.2%}, {self.nats:.3g} nats a token off"
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """All that was measured. Budgets, by which everything is, in tokens."""

    text: str  # its name
    window: int
    page_size: int
    full: Measured  # with attention to all of the context
    kinds: dict[str, dict[int, Cost]]
    best: dict[int, Recall]  # what the best choice would reach

    def as_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "window": self.window,
            "page_size": self.page_size,
            "num_tokens": self.full.num_tokens,
            "perplexity": finite(self.full.perplexity),
            "best": {budget: asdict(recall) for budget, recall in self.best.items()},
        } | {
            kind: {budget: cost.as_json() for budget, cost in costs.items()}
            for kind, costs in self.kinds.items()
        }

    def __str__(self) -> str:
        size = f"{self.full.num_tokens:,} tokens of {self.text}"
        lines = [f"on {size}, {self.window} at a time"]
        for budget, best in self.best.items():
            said = [f"{kind} {costs[budget]}" for kind, costs in self.kinds.items()]
            lines.append(f"at {budget} tokens by {', by '.join(said)}, at best {best.recall:.1%}")
        return "; ".join(lines)


def check_budgets(
    flag: str, budgets: Sequence[int], page_size: int, most: int, what: str
) -> list[int]:
    """The budgets in tokens, in order, each once; raises ModelError, naming the flag, for one that
    leaves nothing to choose or is more than `most`, which is `what`."""
    least = MIN_BUDGET * page_size
    for budget in budgets:
        if not least <= budget <= most:
            raise ModelError(f"{flag}: {budget} is not {least} to {what} {most}")
    return sorted(set(budgets))


def measure(
    decoder: Decoder,
    windows: Sequence[Tensor],
    text: str,
    kinds: Sequence[str],
    budgets: Sequence[int],
    page_size: int,
    threshold: float | None = None,
) -> Quality:
    """Over windows of ids [L] of the `text` of that name; budgets in tokens. The decoder has gates
    attached, where the gate is one of the kinds.

    Every token has the budget, those that would be a prompt too. The predictors' `threshold` is
    that of all runs.
    """
    full = Run("full", decoder, threshold=threshold, skips=False)
    choices = [(kind, budget) for kind in kinds for budget in budgets]
    runs = [full, *(_run(full, kind, budget, page_size) for kind, budget in choices)]
    exact, *others = compare(runs, track(windows, "Reading less"))
    recalled = _recalls(full, windows, [*kinds, BEST], budgets, page_size)
    costs = {
        choice: Cost(recalled[choice], found, _change(found, exact))
        for choice, found in zip(choices, others, strict=True)
    }
    return Quality(
        text=text,
        window=len(windows[0]),
        page_size=page_size,
        full=exact,
        kinds={kind: {budget: costs[kind, budget] for budget in budgets} for kind in kinds},
        best={budget: recalled[BEST, budget] for budget in budgets},
    )


def _run(full: Run, kind: str, budget: int, page_size: int) -> Run:
    reads = Reads(_pages(budget, page_size), page_size, gated=kind == GATE)
    name = f"{kind} {budget}"
    return Run(name, full.decoder, threshold=full.threshold, skips=False, reads=reads)


def _pages(budget: int, page_size: int) -> int:
    return -(-budget // page_size)


def _change(found: Measured, exact: Measured) -> float:
    return math.expm1(min(found.loss - exact.loss, 700.0))  # beyond, no float holds it


@torch.inference_mode()
def _recalls(
    full: Run, windows: Sequence[Tensor], kinds: Sequence[str], budgets: Sequence[int], size: int
) -> dict[tuple[str, int], Recall]:
    """By kind and budget in tokens, of pages of so many tokens, at places drawn in each window."""
    decoder = full.decoder
    found = {(kind, budget): list[Tensor]() for kind in kinds for budget in budgets}
    for number, ids in enumerate(track(windows, "Adding up attention")):
        ids = ids.to(decoder.embedding.device)
        seen = look(decoder, ids, full.threshold)
        places = sample_places(PLACES, len(ids), size, (number,)).to(ids.device)
        for (kind, budget), shares in found.items():
            shares.append(_recall(decoder, seen, kind, _pages(budget, size), places, size))
    return {choice: Recall.of(shares) for choice, shares in found.items()}


def _recall(
    decoder: Decoder, seen: list[Seen], kind: str, pages: int, places: Tensor, page_size: int
) -> Tensor:
    """Each layer's mean share of the attention that falls on the pages that are read: [layers]."""
    found: list[Tensor] = []
    for layer, one in zip(decoder.layers, seen, strict=True):
        gate = attention_of(layer).gate if kind == GATE else None
        projections = None if gate is None else _float(gate.projections)
        found.append(_recalled(one, projections, kind == BEST, pages, places, page_size))
    return torch.stack(found)


def _float(gate: Gate) -> Gate:
    return gate[0].float(), gate[1].float()


def _recalled(
    seen: Seen, gate: Gate | None, knows: bool, pages: int, places: Tensor, page_size: int
) -> Tensor:
    """One layer's: by what estimates, or by what it `knows` of the truth."""
    summary, true = seen.summary(page_size), seen.mass(places, page_size)
    num_pages, num_kv_heads = summary.shape[:2]
    complete = complete_pages(places, num_pages, page_size, seen.window)
    mass = true.view(len(places), num_kv_heads, -1, true.shape[-1]).mean(2)  # [S, K, pages]
    own = (places // page_size)[:, None, None].expand(-1, num_kv_heads, 1)
    estimated = mass[..., :num_pages]
    if not knows:
        probes = probe(seen.q[places], gate, torch.ones(len(places), device=places.device))
        estimated = estimate(probes, summary, seen.scale, complete)
    kept = keep(estimated, pages, 1.0, complete)
    return ((mass[..., :num_pages] * kept).sum(-1) + mass.gather(-1, own)[..., 0]).mean()
