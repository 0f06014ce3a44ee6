"""What one step computes, as tensors: the only thing besides `x` that a layer sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from torch import Tensor


class FfnMode(StrEnum):
    """How the FFN reaches its neurons. The mode changes speed, never meaning."""

    TOKEN = "token"  # each token visits its own neurons
    UNION = "union"  # each neuron that any token needs is visited once, for those tokens
    DENSE = "dense"  # every gate and up is computed, the mask is applied afterwards


@dataclass(frozen=True, slots=True)
class Routing:
    """Which experts compute a token, and how much their results weigh."""

    weights: Tensor  # [T, E] float32; 0: not sent there
    chosen: Tensor  # [T, k] int64, the experts that a token was sent to


@dataclass(frozen=True, slots=True)
class PageBudgets:
    """How much of its context each token of a step may read: `reference_pages.choose`.

    A token's share is of the attention that its complete pages get, as they are estimated.
    """

    pages: Tensor  # [T] int32, so many at most; 0: all of them
    shares: Tensor  # [T] float32, and no more than what gets this share; 1: no such limit
    gated: Tensor  # [T] float32, 1: the learned gate estimates; 0: the bound alone
    tokens: Tensor | None = None  # [S] int64, who has a budget; None: every token is a request's
    read: Tensor | None = (
        None  # [T] float32: with a budget: the share of its pages that are read is added
    )

    def of(self, tokens: Tensor) -> PageBudgets:
        """Those of these tokens [n] int64 alone."""
        read = None if self.read is None else self.read[tokens]
        return PageBudgets(
            self.pages[tokens], self.shares[tokens], self.gated[tokens], tokens=None, read=read
        )


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T tokens of B requests. Tokens of one request are adjacent and in order.

    `query_lens` and `context_lens` are the host's copy, one entry a request: how many of the T
    tokens are its own, and how many tokens it has with them.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slots: Tensor  # [T] int64, where the token's K/V goes: page * page_size + offset
    request_ids: Tensor  # [T] int64, the row of `page_tables`
    page_tables: Tensor  # [B, pages] int32
    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    sample_at: Tensor | None  # [S] int64, the tokens whose logits are wanted; None: every one's
    ffn_mode: FfnMode
    query_starts: Tensor | None = None  # [B + 1] int32, their places among the T; None: T is B
    active: Tensor | None = None  # [layers, T] float32: each token's active fraction is added
    union: Tensor | None = None  # [layers] float32: the share that any token computes is added
    thresholds: Tensor | None = None  # [T] float32, the predictors'; None, NaN: each one's own
    budgets: PageBudgets | None = None  # None: every token reads all of its context

    def only(self, tokens: Tensor) -> ForwardBatch:
        """What attention that sees only these tokens [n] int64, each by itself, needs to know."""
        return replace(
            self,
            positions=self.positions[tokens],
            slots=self.slots[tokens],
            request_ids=self.request_ids[tokens],
            query_starts=None,
        )

    def of(self, tokens: Tensor) -> ForwardBatch:
        """What an FFN that sees only these tokens [n] int64 needs to know of them."""
        return replace(
            self,
            active=_zeros_like(self.active, len(tokens)),
            thresholds=None if self.thresholds is None else self.thresholds[tokens],
        )


def _zeros_like(active: Tensor | None, num_tokens: int) -> Tensor | None:
    return None if active is None else active.new_zeros(len(active), num_tokens)
