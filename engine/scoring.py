"""Log-probabilities of prompt tokens, where a request asks for them. Knows no pages.

A token is scored from the hidden state before it, so the pages of such a prompt are computed
rather than shared. Logits are made in slices: a step's worth at once would be the largest tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.decoder import Decoder
from .logprobs import HostLogprobs, logprobs_of
from .messages import TokenLogprobs
from .request import Request
from .scheduler import Schedule
from .transfer import to_device

SLICE = 64  # tokens whose logits are held at once


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores under way: of `counts[i]` prompt tokens of `requests[i]`, one after the other."""

    requests: list[Request]
    counts: list[int]
    slices: list[HostLogprobs]


def is_asked_for(schedule: Schedule) -> bool:
    """Whether the step holds prompt tokens that are to be scored."""
    return any(item.request.unscored(item.start, item.end) for item in schedule.items)


def score(decoder: Decoder, hidden: Tensor, schedule: Schedule) -> Scored | None:
    """Score what this step's hidden states [T, hidden] say of prompts; None if nobody asks."""
    requests: list[Request] = []
    counts: list[int] = []
    places: list[int] = []  # among the T tokens
    next_ids: list[int] = []
    offset = 0
    for item in schedule.items:
        request = item.request
        scored = request.unscored(item.start, item.end)
        if scored:
            requests.append(request)
            counts.append(len(scored))
            places += [offset + p - item.start for p in scored]
            next_ids += [request.token_ids[p + 1] for p in scored]
        offset += item.num_tokens
    if not requests:
        return None
    most = max(r.sampling.prompt_logprobs or 0 for r in requests)
    at = to_device(places, hidden.device, torch.int64)
    ids = to_device(next_ids, hidden.device, torch.int64)
    slices: list[HostLogprobs] = []
    for start in range(0, len(places), SLICE):
        part = slice(start, start + SLICE)
        logits = decoder.logits(hidden[at[part]])
        slices.append(HostLogprobs.of(logprobs_of(logits, ids[part], most)))
    return Scored(requests, counts, slices)


def read(scored: Scored | None) -> list[tuple[Request, list[TokenLogprobs]]]:
    """Wait for the scores: each request's prompt tokens in order."""
    if scored is None:
        return []
    found: list[TokenLogprobs] = []
    wanted = [
        request.sampling.prompt_logprobs or 0
        for request, count in zip(scored.requests, scored.counts, strict=True)
        for _ in range(count)
    ]
    for part in scored.slices:
        found += part.read(wanted[len(found) :])
    out: list[tuple[Request, list[TokenLogprobs]]] = []
    start = 0
    for request, count in zip(scored.requests, scored.counts, strict=True):
        out.append((request, found[start : start + count]))
        start += count
    return out
