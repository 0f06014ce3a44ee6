"""How far one way to run a model is from another: on text, token by token, neuron by neuron.

Windows of text come one at a time, and what is held does not grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention import LayerCache
from ..batch import FfnMode, ForwardBatch
from ..decoder import Decoder
from ..sequence import Reads, limits_of, observe
from .skipping import Skipped, Skipping

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
ROWS = 256  # of logits whose logarithms are taken at once
PAGE = 64  # a sequence's page is a multiple of it


@dataclass(frozen=True, slots=True)
class Run:
    """A decoder, and a way to run it. Two runs may share the decoder.

    `threshold` stands instead of its predictors' own; minus infinity keeps every neuron. `step`
    is how many tokens go through at once, a whole window by default. `skips`: count its neurons.
    `reads`: how much of its context a token reads, all of it by default.
    """

    name: str
    decoder: Decoder
    mode: FfnMode = FfnMode.DENSE
    threshold: float | None = None
    step: int | None = None
    skips: bool = True
    reads: Reads | None = None


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a run says, held against the first one's."""

    nats: float  # KL(first || this) of the next token, mean
    same_best: float  # share of tokens whose most likely successor is the same
    logits: float  # largest difference of any


@dataclass(frozen=True, slots=True)
class Continuations:
    """Greedy texts that both continued from the same prompts."""

    num_prompts: int
    num_tokens: int  # of each text
    num_same: int  # texts that are the same to their end
    common: float  # share of all tokens that comes before the first difference


@dataclass(frozen=True, slots=True)
class Measured:
    """One run's numbers. `agreement` is None for the run that others are held against, `skipping`
    where nothing can be skipped or was to be counted."""

    name: str
    mode: str
    threshold: float | None
    num_tokens: int  # predicted
    loss: float  # nats a token
    agreement: Agreement | None
    skipping: Skipping | None

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def as_json(self) -> dict[str, Any]:
        """For a file: infinities, which JSON has not, as text."""
        return {
            "name": self.name,
            "mode": self.mode,
            "threshold": finite(self.threshold),
            "num_tokens": self.num_tokens,
            "loss": self.loss,
            "perplexity": finite(self.perplexity),
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "skipping": None if self.skipping is None else self.skipping.as_json(),
        }


def finite(value: float | None) -> float | str | None:
    """For JSON, which has no infinities."""
    return value if value is None or math.isfinite(value) else str(value)


@dataclass(slots=True)
class _Sums:
    """A run's counts so far."""

    run: Run
    skipped: Skipped | None
    num_tokens: int = 0
    loss: float = 0.0
    nats: float = 0.0
    num_same: int = 0
    logits: float = 0.0

    def result(self, is_first: bool) -> Measured:
        n = self.num_tokens
        assert n, "no window was measured"
        agreement = Agreement(self.nats / n, self.num_same / n, self.logits)
        return Measured(
            name=self.run.name,
            mode=self.run.mode.value,
            threshold=self.run.threshold,
            num_tokens=n,
            loss=self.loss / n,
            agreement=None if is_first else agreement,
            skipping=None if self.skipped is None else self.skipped.result(),
        )


@torch.inference_mode()
def compare(
    runs: Sequence[Run],
    windows: Iterable[Tensor],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seed: int = 0,
) -> list[Measured]:
    """Every run's numbers over the same windows of ids; the others are held against the first.

    All runs see a window before the next is read. For the union of unrelated tokens, windows that
    follow each other should not be of one article: shuffle them.
    """
    sums = [_Sums(run, _skipped(run, batch_sizes, seed)) for run in runs]
    for ids in windows:
        reference: Tensor | None = None
        for one in sums:
            logits = _observe(one, ids)[:-1]  # the last one's successor is not known
            targets = ids[1:].to(logits.device)
            one.num_tokens += len(targets)
            for start in range(0, len(targets), ROWS):
                rows = slice(start, start + ROWS)
                first = None if reference is None else reference[rows]
                _add(one, logits[rows], targets[rows], first)
            reference = logits if reference is None else reference
    return [one.result(is_first=i == 0) for i, one in enumerate(sums)]


def _skipped(run: Run, batch_sizes: Sequence[int], seed: int) -> Skipped | None:
    counts = run.skips and run.decoder.config.activation.is_sparse
    return Skipped(run.decoder, batch_sizes, seed) if counts else None


def _observe(sums: _Sums, ids: Tensor) -> Tensor:
    """The run's logits of one window [T, vocab]; its neurons are counted."""
    run = sums.run
    ids = ids.to(run.decoder.embedding.device)
    seen = observe(
        run.decoder,
        ids,
        mode=run.mode,
        threshold=run.threshold,
        step=run.step,
        reads=run.reads,
    )
    if sums.skipped is not None:
        sums.skipped.add(seen, run.threshold)
    return seen.logits


def _add(sums: _Sums, logits: Tensor, targets: Tensor, first: Tensor | None) -> None:
    """Count some rows of a window's logits [n, vocab], beside the same of the first run."""
    log_this = logits.log_softmax(-1)
    sums.loss -= log_this.gather(1, targets[:, None]).double().sum().item()
    if first is None:
        return
    first = first.to(logits.device)
    log_first = first.log_softmax(-1)
    sums.nats += (log_first.exp() * (log_first - log_this)).sum(-1).double().sum().item()
    sums.num_same += int((first.argmax(-1) == logits.argmax(-1)).sum())
    sums.logits = max(sums.logits, (first - logits).abs().max().item())


def continue_both(first: Run, other: Run, prompts: Tensor, num_tokens: int) -> Continuations:
    """Let two runs continue the same prompts [B, P], and say how long they agree."""
    ours, theirs = (continue_greedily(run, prompts, num_tokens).cpu() for run in (first, other))
    together = (ours == theirs).long().cumprod(1)  # 1 up to the first difference
    return Continuations(
        num_prompts=len(prompts),
        num_tokens=num_tokens,
        num_same=int(together[:, -1].sum()),
        common=together.double().mean().item(),
    )


@torch.inference_mode()
def continue_greedily(run: Run, prompts: Tensor, num_tokens: int) -> Tensor:
    """Greedy tokens after prompts [B, P]: all in one step, then one step a token: [B, n]."""
    assert run.reads is None, f"{run.name}: a continuation reads all of its context"
    decoder = run.decoder
    ids = prompts.to(decoder.embedding.device)
    length = ids.shape[1]
    caches = _caches(decoder, len(ids), length + num_tokens)
    places = torch.arange(length, device=ids.device)
    logits = decoder(_batch(run, ids, places, caches), caches)
    said = [logits.view(len(ids), length, -1)[:, -1].argmax(-1)]
    for place in range(length, length + num_tokens - 1):
        at = torch.tensor([place], device=ids.device)
        said.append(decoder(_batch(run, said[-1][:, None], at, caches), caches).argmax(-1))
    return torch.stack(said, 1)


def _caches(decoder: Decoder, num_sequences: int, num_tokens: int) -> list[LayerCache]:
    """One page a layer for each sequence."""
    config, like = decoder.config, decoder.embedding
    page = -(-num_tokens // PAGE) * PAGE
    shape = (num_sequences, config.num_kv_heads, page, config.head_dim)
    return [LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in decoder.layers]


def _batch(run: Run, ids: Tensor, places: Tensor, caches: list[LayerCache]) -> ForwardBatch:
    """The next tokens [B, n] of B sequences, at the same places [n], each on its own page."""
    num_sequences, num_new = ids.shape
    page_size = caches[0].k.shape[2]
    rows = torch.arange(num_sequences, device=ids.device)
    slots = rows[:, None] * page_size + places
    size = num_sequences * num_new
    starts = torch.arange(0, size + 1, num_new, dtype=torch.int32, device=ids.device)
    return ForwardBatch(
        token_ids=ids.flatten(),
        positions=places.repeat(num_sequences),
        slots=slots.flatten(),
        request_ids=rows.repeat_interleave(num_new),
        page_tables=rows[:, None].int(),
        query_lens=(num_new,) * num_sequences,
        context_lens=(int(places[-1]) + 1,) * num_sequences,
        sample_at=None,
        ffn_mode=run.mode,
        query_starts=None if num_new == 1 else starts,
        thresholds=limits_of(run.threshold, size, ids.device),
    )
