"""Grammars applied to logits: packed masks from the host, unpacked where the logits are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .grammar import WORD, masks
from .request import Request
from .transfer import to_device


def allow_only(logits: Tensor, requests: Sequence[Request]) -> None:
    """Set to -inf, in place, what a request's grammar does not allow next: logits [S, vocab].

    The grammar must have been told of every token before: no token of the request is in flight.
    """
    constrained = [(i, r.constraint) for i, r in enumerate(requests) if r.constraint is not None]
    if not constrained:
        return
    packed = masks([c for _, c in constrained], logits.shape[1])
    index = [i for i, _ in constrained]
    if logits.device.type == "cpu":  # a tenth of the time of torch's small ops
        scores = logits.numpy()
        bits = np.unpackbits(packed.view(np.uint8), axis=1, bitorder="little")
        for i, allowed in zip(index, bits[:, : logits.shape[1]], strict=True):
            scores[i][allowed == 0] = -np.inf
        return
    allowed = unpacked(to_device(packed, logits.device), logits.shape[1])
    places = to_device(index, logits.device)
    logits[places] = logits[places].masked_fill(~allowed, -torch.inf)


def unpacked(packed: Tensor, vocab_size: int) -> Tensor:
    """[C, words] int32 -> [C, vocab] bool, on the device."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=packed.device)
    return (packed[:, :, None] >> shifts & 1).bool().flatten(1)[:, :vocab_size]
