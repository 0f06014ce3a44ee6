"""From logits to the next token ids, on the device. Knows sampling parameters; knows no pages.

A request's randomness is a function of its seed and the index of the token alone, so its text does
not depend on its neighbours, on preemption or on the batch's order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.kernels.ops import Ops
from .logprobs import DeviceLogprobs, logprobs_of
from .masks import allow_only
from .request import Request
from .rows import Rows, row_of
from .transfer import Arrays, to_device, to_device_together

MASK = (1 << 64) - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for the `index`-th token of a seed: two rounds of splitmix64."""
    state = (seed * 0x9E3779B97F4A7C15 + index + 1) & MASK
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def sample(
    logits: Tensor, requests: list[Request], rows: Rows, eos_token_ids: tuple[int, ...], ops: Ops
) -> tuple[Tensor, DeviceLogprobs | None]:
    """One token for each request: [S, vocab] float32 -> [S] int64, and the log-probabilities of
    those requests that ask, in their order.

    The order is vLLM's: bias and minimum length, penalties, grammars, then for those that are not
    greedy temperature, top-k, top-p and min-p. Reported log-probabilities are the model's own,
    before all.
    """
    if all(r.is_plain for r in requests):
        return ops.most_likely(logits), None
    original = logits
    shaped = [i for i, r in enumerate(requests) if _is_shaped(r)]
    if shaped:
        logits = logits.clone() if _wants_logprobs(requests) else logits
        for i in shaped:
            _shape(logits[i], requests[i], rows, eos_token_ids)
        allow_only(logits, requests)
    device = logits.device
    random = [i for i, r in enumerate(requests) if not r.sampling.is_greedy]
    if len(random) == len(requests):
        token_ids = _draw(logits, requests, ops)
    else:
        token_ids = ops.most_likely(logits)
        if random:
            index = to_device(random, device)
            token_ids[index] = _draw(logits[index], [requests[i] for i in random], ops)
    counted = [i for i, r in enumerate(requests) if r.sampling.has_penalties]
    if counted:
        index = to_device(counted, device)
        rows.count_sampled([row_of(requests[i]) for i in counted], token_ids[index])
    return token_ids, _logprobs(original, token_ids, requests)


def _is_shaped(request: Request) -> bool:
    s = request.sampling
    has_bounds = s.min_tokens > request.num_output_tokens or s.grammar is not None
    return bool(s.logit_bias) or has_bounds or s.has_penalties


def _shape(logits: Tensor, request: Request, rows: Rows, eos_token_ids: tuple[int, ...]) -> None:
    """Apply bias, minimum length and penalties to one request's logits [vocab], in place."""
    s = request.sampling
    for token_id, bias in s.logit_bias:
        logits[token_id] += bias
    if s.min_tokens > request.num_output_tokens:
        stops = [*s.stop_token_ids, *(() if s.ignore_eos else eos_token_ids)]
        logits.index_fill_(0, to_device(stops, logits.device, torch.int64), -torch.inf)
    if not s.has_penalties:
        return
    counts, in_prompt = rows.penalty_counts(row_of(request))
    if s.repetition_penalty != 1.0:
        seen = in_prompt | (counts > 0)
        scaled = torch.where(
            logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty
        )
        logits.copy_(torch.where(seen, scaled, logits))
    logits -= s.frequency_penalty * counts + s.presence_penalty * (counts > 0)


def _draw(logits: Tensor, requests: list[Request], ops: Ops) -> Tensor:
    """One token of each request's distribution: [R, vocab] -> [R] int64."""
    params = [r.sampling for r in requests]
    points = [uniform(r.sampling.seed or 0, r.num_output_tokens) for r in requests]
    arrays: Arrays = {
        "temperature": np.array([p.temperature for p in params], dtype=np.float32),
        "points": np.array(points, dtype=np.float64),
    }
    if any(p.has_limits for p in params):
        arrays |= {
            "top_k": np.array([p.top_k or logits.shape[1] for p in params], dtype=np.int64),
            "top_p": np.array([p.top_p for p in params], dtype=np.float32),
            "min_p": np.array([p.min_p for p in params], dtype=np.float32),
        }
    sent = to_device_together(arrays, logits.device)
    limits = (sent["top_k"], sent["top_p"], sent["min_p"]) if "top_k" in sent else None
    return ops.draw(logits, sent["temperature"], sent["points"], limits)


def _wants_logprobs(requests: list[Request]) -> bool:
    return any(r.sampling.logprobs is not None for r in requests)


def _logprobs(logits: Tensor, token_ids: Tensor, requests: list[Request]) -> DeviceLogprobs | None:
    indices = [i for i, r in enumerate(requests) if r.sampling.logprobs is not None]
    if not indices:
        return None
    most = max(requests[i].sampling.logprobs or 0 for i in indices)
    index = to_device(indices, logits.device)
    return logprobs_of(logits[index], token_ids[index], most)
