"""What a choice of pages costs a model, on text that its gates have not seen."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from ..attention import LayerCache
from ..batch import ForwardBatch, PageBudgets
from ..decoder import Decoder
from ..kernels.reference_pages import Gate, estimate, keep, probe
from ..sequence import sequence_batch
from ..sparsity.gates import attention_of
from .page_mass import Seen, complete_pages, look, sample_places

PLACES = 32  # of a window and layer, where the attention that is recalled is added up


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind of choice at one budget."""

    recall: float  # share of the attention that falls on what is read, mean over layers
    recall_by_layer: list[float]
    perplexity: float
    nats: float  # KL(full || this) of the next token


@dataclass(frozen=True, slots=True)
class Quality:
    """All that was measured: by budget in tokens, the bound, the gate, and the best possible."""

    text: str
    num_tokens: int
    window: int
    perplexity: float  # with attention to all of the context
    bound: dict[int, Cost]
    gate: dict[int, Cost]
    best_recall: dict[int, float]

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"on {self.num_tokens:,} tokens of {self.text}, {self.window} at a time"]
        for budget, gate in self.gate.items():
            bound = self.bound[budget]
            lines.append(
                f"at {budget} tokens {gate.recall:.1%} of the attention recalled (bound "
                f"{bound.recall:.1%}, at best {self.best_recall[budget]:.1%}), perplexity "
                f"{gate.perplexity / self.perplexity - 1:+.2%} (bound "
                f"{bound.perplexity / self.perplexity - 1:+.2%}), {gate.nats:.3g} nats a token off "
                f"(bound {bound.nats:.3g})"
            )
        return "; ".join(lines)


@torch.inference_mode()
def measure(
    decoder: Decoder, windows: Iterable[Tensor], text: str, budgets: list[int], page_size: int
) -> Quality:
    """Of a decoder with gates attached, over windows of ids [L]; budgets in tokens."""
    sums = {(kind, budget): _Sums() for budget in budgets for kind in ("bound", "gate", "best")}
    full, num_tokens, length = _Sums(), 0, 0
    for number, ids in enumerate(windows):
        ids = ids.to(decoder.embedding.device)
        num_tokens, length = num_tokens + len(ids) - 1, len(ids)
        exact = _logits(decoder, ids, None, page_size).log_softmax(-1)
        full.add_logits(exact, exact, ids)
        seen = look(decoder, ids)
        places = sample_places(PLACES, len(ids), page_size, (number,)).to(ids.device)
        for (kind, budget), found in sums.items():
            pages = -(-budget // page_size)
            found.recall.append(_recall(decoder, seen, kind, pages, places, page_size))
            if kind != "best":
                given = _budgets(len(ids), pages, gated=kind == "gate", device=ids.device)
                logits = _logits(decoder, ids, given, page_size).log_softmax(-1)
                found.add_logits(logits, exact, ids)
    best = {budget: sums["best", budget] for budget in budgets}
    return Quality(
        text=text,
        num_tokens=num_tokens,
        window=length,
        perplexity=math.exp(full.loss / num_tokens),
        bound={budget: sums["bound", budget].cost(num_tokens) for budget in budgets},
        gate={budget: sums["gate", budget].cost(num_tokens) for budget in budgets},
        best_recall={budget: found.mean_recall().mean().item() for budget, found in best.items()},
    )


class _Sums:
    """Over the windows so far."""

    def __init__(self) -> None:
        self.recall: list[Tensor] = []  # [layers] each
        self.loss = self.nats = 0.0

    def add_logits(self, log_probs: Tensor, exact: Tensor, ids: Tensor) -> None:
        """Of the next token: [T, vocab] both."""
        self.loss -= log_probs[:-1].gather(1, ids[1:, None]).double().sum().item()
        self.nats += (exact.exp() * (exact - log_probs))[:-1].double().sum().item()

    def mean_recall(self) -> Tensor:
        return torch.stack(self.recall).mean(0)

    def cost(self, num_tokens: int) -> Cost:
        recall = self.mean_recall()
        return Cost(
            recall=recall.mean().item(),
            recall_by_layer=[float(share) for share in recall],
            perplexity=math.exp(self.loss / num_tokens),
            nats=self.nats / num_tokens,
        )


def _recall(
    decoder: Decoder, seen: list[Seen], kind: str, pages: int, places: Tensor, page_size: int
) -> Tensor:
    """Each layer's mean share of the attention that falls on the pages that are read: [layers]."""
    found: list[Tensor] = []
    for layer, one in zip(decoder.layers, seen, strict=True):
        gate = attention_of(layer).gate if kind == "gate" else None
        projections = None if gate is None else _float(gate.projections)
        found.append(_recalled(one, projections, kind == "best", pages, places, page_size))
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


def _budgets(num_tokens: int, pages: int, *, gated: bool, device: torch.device) -> PageBudgets:
    ones = torch.ones(num_tokens, device=device)
    places = torch.arange(num_tokens, device=device)
    return PageBudgets((ones * pages).int(), ones, ones * gated, tokens=places)


def _logits(decoder: Decoder, ids: Tensor, budgets: PageBudgets | None, page_size: int) -> Tensor:
    """Of one window [T, vocab], each of its tokens reading what it may."""
    batch, caches = _paged(decoder, ids, page_size)
    return decoder(replace(batch, budgets=budgets), caches)


def _paged(decoder: Decoder, ids: Tensor, page_size: int) -> tuple[ForwardBatch, list[LayerCache]]:
    """One window as a step, on pages with summaries."""
    config, like, num_pages = decoder.config, decoder.embedding, -(-len(ids) // page_size)
    tables = torch.arange(num_pages, dtype=torch.int32, device=ids.device)[None]
    shapes = [
        (num_pages, config.num_kv_heads, n, config.head_dim) for n in (page_size, page_size, 2)
    ]
    caches = [LayerCache(*(like.new_empty(shape) for shape in shapes)) for _ in decoder.layers]
    return replace(sequence_batch(ids), page_tables=tables), caches
