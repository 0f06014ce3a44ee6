"""Which pages of its context a generated token reads, as layers and whoever serves them see it.

Two estimates, one choice. The *bound* needs no training; the *gate* adds to it what it has learned.
What they mean is in `kernels/reference_pages.py`. A K/V page is the unit of the choice: its summary
is right for every request that shares it, whatever follows the page. Knows no request.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor, nn

from ..kernels.reference_pages import MIN_BUDGET as MIN_BUDGET
from ..layers import weight


class AttentionMode(StrEnum):
    """What a generated token reads. Prompts are always attended in full."""

    FULL = "full"  # all of its context: exact
    BOUND = "bound"  # the pages whose keys could score highest
    GATE = "gate"  # those that a trained gate expects to


class Gate(nn.Module):
    """One layer's learned part of the estimate: `reference_pages.probe`."""

    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int, rank: int) -> None:
        super().__init__()
        self.query = weight(num_heads, rank, 2 * head_dim)
        self.key = weight(num_kv_heads, 2 * head_dim, rank)

    def begin(self, generator: torch.Generator) -> None:
        """Say what the bound says: what is added is zero, and can be learned from there."""
        self.query.data.normal_(std=self.query.shape[-1] ** -0.5, generator=generator)
        self.key.data.zero_()

    @property
    def projections(self) -> tuple[Tensor, Tensor]:
        return self.query, self.key
