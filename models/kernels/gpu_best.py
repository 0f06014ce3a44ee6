# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
# pyright: reportGeneralTypeIssues=false
"""Triton: the likeliest token of each row of logits, which several programs look for."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gpu_launch import counters
from .sizes import ceil_div, power_of_two

SPLITS = 16  # programs of a row
BLOCK = 8192  # logits at a time, at most


@triton.jit
def _first_best(values, ids, end):
    """The largest value, and the least id of those who have it; of NaN alone the last one."""
    best = tl.max(values, 0)
    return best, tl.minimum(tl.min(tl.where(values == best, ids, end), 0), end - 1)


@triton.jit
def best_kernel(
    logits_ptr,
    values_ptr,
    ids_ptr,
    counter_ptr,
    token_ids_ptr,
    stride,
    vocab,
    share,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A share of one row; the last program of a row takes the best of all shares."""
    row, split = tl.program_id(0), tl.program_id(1)
    end = tl.minimum((split + 1) * share, vocab)
    values = tl.full((BLOCK,), float("-inf"), tl.float32)
    ids = tl.full((BLOCK,), 0, tl.int32) + vocab
    for start in range(split * share, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        logits = tl.load(
            logits_ptr + row.to(tl.int64) * stride + at, mask=at < end, other=float("-inf")
        )
        is_better = (at < end) & ((logits > values) | (ids == vocab))
        values = tl.where(is_better, logits, values)
        ids = tl.where(is_better, at, ids)
    best, token_id = _first_best(values, ids, vocab)
    tl.store(values_ptr + row * SPLITS + split, best)
    tl.store(ids_ptr + row * SPLITS + split, token_id)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr + row, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
        tl.store(counter_ptr + row, 0)
        shares = row * SPLITS + tl.arange(0, SPLITS)
        bests = tl.load(values_ptr + shares, cache_modifier=".cg")
        theirs = tl.load(ids_ptr + shares, cache_modifier=".cg")
        tl.store(token_ids_ptr + row, _first_best(bests, theirs, vocab)[1].to(tl.int64))


def most_likely(logits: Tensor) -> Tensor:
    """`reference.most_likely`."""
    (num_rows, vocab), device = logits.shape, logits.device
    assert logits.stride(1) == 1 or vocab == 1, logits.stride()
    share = ceil_div(vocab, SPLITS)
    values = torch.empty(num_rows, SPLITS, dtype=torch.float32, device=device)
    ids = torch.empty(num_rows, SPLITS, dtype=torch.int32, device=device)
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    best_kernel[(num_rows, SPLITS)](
        logits,
        values,
        ids,
        counters(device),
        token_ids,
        logits.stride(0),
        vocab,
        share,
        SPLITS=SPLITS,
        BLOCK=min(BLOCK, max(16, power_of_two(share))),
    )
    return token_ids
