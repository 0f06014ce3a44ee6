"""Grammars applied to logits: packed masks from the host, unpacked where the logits are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLExecutor
from llguidance.numpy import fill_next_token_bitmask_par
from numpy.typing import NDArray
from torch import Tensor

from .grammar import Constraint
from .request import Request
from .transfer import to_device

WORD = 32  # tokens in one word of a mask
EXECUTOR = LLExecutor()  # threads for the masks of one step


def allow_only(logits: Tensor, requests: Sequence[Request]) -> None:
    """Set to -inf, in place, what a request's grammar does not allow next: logits [S, vocab].

    The grammar must have been told of every token before: no token of the request is in flight.
    """
    constrained = [(i, r.constraint) for i, r in enumerate(requests) if r.constraint is not None]
    if not constrained:
        return
    packed = to_device(masks([c for _, c in constrained], logits.shape[1]), logits.device)
    bits = torch.arange(WORD, dtype=torch.int32, device=logits.device)
    allowed = (packed[:, :, None] >> bits & 1).bool().flatten(1)[:, : logits.shape[1]]
    index = to_device([i for i, _ in constrained], logits.device)
    logits[index] = logits[index].masked_fill(~allowed, -torch.inf)


def masks(constraints: Sequence[Constraint], vocab_size: int) -> NDArray[np.int32]:
    """Which tokens each may have next: [C, ceil(vocab / 32)], bit i of word w is token 32 w + i."""
    found = np.zeros((len(constraints), -(-vocab_size // WORD)), np.int32)
    places = [(constraint.matcher, i) for i, constraint in enumerate(constraints)]
    fill_next_token_bitmask_par(EXECUTOR, places, found)
    return found
