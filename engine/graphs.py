"""Steps as CUDA graphs: one for each padded number of tokens, captured at start.

Steps with pieces of prompts have graphs of their own: a host takes as long to launch the kernels of
some hundred tokens as a GPU takes to run them. A step is copied into the graph's own inputs, so
nothing that the GPU reads is written by the host.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..models.attention import LayerCache
from ..models.batch import FfnMode, ForwardBatch, PageBudgets
from ..models.capture import captured
from ..models.decoder import Decoder
from ..models.progress import track
from ..models.sparsity.policy import FfnPolicy

# Of decode steps: up to 8 tokens every one, since padding is computed, and its neurons are read.
SIZES = (
    *range(1, 9),
    *(10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
)
OWN = 8  # rows of logits that a graph keeps for itself; more lie where all graphs' do
PIECES = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)  # of steps with some of prompts


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a captured graph is for; a step finds its graph by the very same key."""

    num_tokens: int
    ffn_mode: FfnMode
    chooses_pages: bool = False
    holds_pieces: bool = False


def can_capture(decoder: Decoder) -> bool:
    """Not where launching is computing."""
    return decoder.embedding.device.type == "cuda"


def decode_sizes(max_tokens: int) -> tuple[int, ...]:
    """The sizes to which decode steps of up to `max_tokens` tokens are padded."""
    return SIZES[: bisect_left(SIZES, min(max_tokens, SIZES[-1])) + 1]


def graph_key(
    num_tokens: int,
    max_tokens: int,
    policy: FfnPolicy,
    chooses_pages: bool = False,
    *,
    holds_pieces: bool = False,
) -> GraphKey | None:
    """The graph that runs a step of `num_tokens`; None if it is larger than any."""
    sizes = PIECES if holds_pieces else SIZES
    if num_tokens > min(max_tokens, sizes[-1]):
        return None
    padded = sizes[bisect_left(sizes, num_tokens)]
    return GraphKey(padded, policy.mode_for(padded), chooses_pages, holds_pieces)


class StepGraphs:
    """The graphs of one model, and the tensors that they read.

    There are none for steps of more than `max_tokens` requests, nor with pieces of prompts for more
    than `max_piece_tokens` tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: list[LayerCache],
        policy: FfnPolicy,
        *,
        max_tokens: int,
        max_pages: int,
        max_piece_tokens: int = 0,
    ) -> None:
        device = decoder.embedding.device
        self.decoder = decoder
        self.caches = caches
        self.policy = policy
        self.max_tokens = max_tokens
        self.max_piece_tokens = max_piece_tokens
        self.graphs: dict[GraphKey, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._max_requests = decode_sizes(max_tokens)[-1]
        size = max(self._max_requests, PIECES[-1] if max_piece_tokens else 0)

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self._token_ids, self._positions, self._slots = zeros(size), zeros(size), zeros(size)
        # a request more stands for the tokens that are not there
        self._page_tables = zeros(self._max_requests + 1, max_pages, dtype=torch.int32)
        self._query_starts = zeros(self._max_requests + 2, dtype=torch.int32)
        self._sample_at = zeros(self._max_requests)
        shared = self._max_requests if self._max_requests > OWN else 0
        self._logits = zeros(shared, decoder.config.vocab_size, dtype=torch.float32)
        self._rows = torch.arange(size, device=device)
        self._budgets: PageBudgets | None = None
        if caches[0].summary is not None:
            pages, shares = zeros(size, dtype=torch.int32), zeros(size, dtype=torch.float32)
            self._budgets = PageBudgets(pages, shares, torch.zeros_like(shares))

    def capture(self, only: int | None = None) -> None:
        """Capture every size, the largest first: the smaller ones fit into its memory."""
        sizes = range(1, self.max_tokens + 1) if only is None else [only]
        kinds = [False] if self._budgets is None else [False, True]
        keys = {graph_key(n, self.max_tokens, self.policy, kind) for n in sizes for kind in kinds}
        if only is None:
            limits = (self.max_piece_tokens, self.policy)
            pieces = range(1, self.max_piece_tokens + 1)
            keys |= {graph_key(n, *limits, holds_pieces=True) for n in pieces}
        found = sorted((k for k in keys if k is not None), key=lambda k: -k.num_tokens)
        pool = torch.cuda.graph_pool_handle()
        self._slots.fill_(-1)  # write no page while warming up
        for key in track(found, "Capturing graphs"):
            batch = self._batch(key)
            self._query_starts[1:] = key.num_tokens
            self.graphs[key] = captured(partial(self._logits_of, batch), pool)

    def _logits_of(self, batch: ForwardBatch) -> Tensor:
        """What a graph does."""
        logits = self.decoder(batch, self.caches)
        return logits if len(logits) <= OWN else self._logits[: len(logits)].copy_(logits)

    def run(self, batch: ForwardBatch) -> Tensor | None:
        """Logits [S, vocab] of the tokens to sample; None if no graph is that large, or one reads a
        share of its context beside a prompt's piece.

        They may be the graphs' own memory: read them before the next step is launched.
        """
        num_tokens, (num_requests, num_pages) = len(batch.token_ids), batch.page_tables.shape
        key = self._key(batch)
        if key is None:
            return None
        self._token_ids[:num_tokens] = batch.token_ids
        self._positions[:num_tokens] = batch.positions
        self._slots[:num_tokens] = batch.slots
        self._slots[num_tokens : key.num_tokens] = -1  # who is not there writes nothing
        self._positions[num_tokens : key.num_tokens] = 0
        self._page_tables[:num_requests, :num_pages] = batch.page_tables
        if batch.budgets is not None:
            self._copy_budgets(batch.budgets)
        if key.holds_pieces:
            self._copy_pieces(batch, key.num_tokens)
        graph, logits = self.graphs[key]
        graph.replay()
        sample_at = batch.sample_at
        if sample_at is None or len(sample_at) == num_tokens:
            return logits[:num_tokens]
        return logits[: len(sample_at)] if key.holds_pieces else logits[sample_at]

    def _key(self, batch: ForwardBatch) -> GraphKey | None:
        num_tokens, chooses_pages = len(batch.token_ids), batch.budgets is not None
        if batch.query_starts is None:
            return graph_key(num_tokens, self.max_tokens, self.policy, chooses_pages)
        fits = batch.sample_at is not None and len(batch.page_tables) <= self._max_requests
        if chooses_pages or not fits:
            return None
        return graph_key(num_tokens, self.max_piece_tokens, self.policy, holds_pieces=True)

    def _copy_pieces(self, batch: ForwardBatch, padded: int) -> None:
        """Whose the tokens are, and which of them are sampled. The padding is one request more."""
        starts, sample_at = batch.query_starts, batch.sample_at
        assert starts is not None, "pieces of prompts without their places"
        assert sample_at is not None, "pieces of prompts whose every token is sampled"
        self._query_starts[: len(starts)] = starts
        self._query_starts[len(starts) :] = padded
        self._sample_at[: len(sample_at)] = sample_at
        self._sample_at[len(sample_at) :] = 0

    def _copy_budgets(self, given: PageBudgets) -> None:
        """Who is not there keeps what was there before: it stands at position 0, and reads that."""
        own, num_tokens = self._budgets, len(given.pages)
        assert own is not None, "page budgets without page summaries"
        own.pages[:num_tokens] = given.pages
        own.shares[:num_tokens] = given.shares
        own.gated[:num_tokens] = given.gated

    def _batch(self, key: GraphKey) -> ForwardBatch:
        """A view of the inputs, as wide as the graph."""
        n = key.num_tokens
        batch = ForwardBatch(
            token_ids=self._token_ids[:n],
            positions=self._positions[:n],
            slots=self._slots[:n],
            request_ids=self._rows[:n],
            page_tables=self._page_tables[:n],
            query_lens=(1,) * n,
            context_lens=(1,) * n,
            sample_at=None,
            ffn_mode=key.ffn_mode,
            budgets=self._first_budgets(n) if key.chooses_pages else None,
        )
        if not key.holds_pieces:
            return batch
        return replace(
            batch,
            page_tables=self._page_tables,
            query_starts=self._query_starts,
            sample_at=self._sample_at,
        )

    def _first_budgets(self, num_tokens: int) -> PageBudgets:
        own, part = self._budgets, slice(num_tokens)
        assert own is not None
        return PageBudgets(own.pages[part], own.shares[part], own.gated[part])
