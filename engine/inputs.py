"""From a schedule to the tensors of one step: a gather from the permanent rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.batch import FfnMode, ForwardBatch, PageBudgets
from .request import PageChoice, Request
from .rows import Rows, row_of
from .scheduler import Schedule, ScheduledRequest
from .transfer import to_device


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model sees, and the requests that sample at the end, in the order of its logits."""

    batch: ForwardBatch
    sampling: list[Request]


def gather(
    schedule: Schedule,
    rows: Rows,
    page_size: int,
    mode: FfnMode,
    active: Tensor | None,
    *,
    measures_pages: bool = False,
) -> StepInputs:
    """Build the batch. `measures_pages`: whoever has a page budget leaves the share of its pages
    that it reads.

    A token that was sampled by the step before and not yet read by the host is taken from its row
    on the device.
    """
    items = schedule.items
    token_ids: list[int] = []
    positions: list[int] = []
    sample_at: list[int] = []
    unread: list[tuple[int, int]] = []  # (place, row) of a token whose id only the device knows
    for item in items:
        token_ids += item.request.token_ids[item.start : item.end]
        positions += range(item.start, item.end)
        if len(token_ids) < len(positions):
            assert len(token_ids) == len(positions) - 1, (item.request.id, item.start, item.end)
            unread.append((len(token_ids), row_of(item.request)))
            token_ids.append(0)
        if item.samples:
            sample_at.append(len(positions) - 1)

    query_lens = tuple([item.num_tokens for item in items])
    context_lens = tuple([item.end for item in items])
    request_ids, query_starts = np.arange(len(items)), None
    if len(items) < len(positions):
        request_ids = np.repeat(request_ids, query_lens)
        query_starts = np.cumsum((0, *query_lens), dtype=np.int32)
    row_ids = np.array([row_of(item.request) for item in items])
    page_tables = rows.page_tables[row_ids, : -(-max(context_lens) // page_size)]
    places = np.array(positions, dtype=np.int64)
    pages = page_tables[request_ids, places // page_size].astype(np.int64)
    slots = pages * page_size + places % page_size

    device = rows.device
    ids = to_device(np.array(token_ids, dtype=np.int64), device)
    if unread:
        unread_rows = np.full(len(token_ids), -1)
        for place, row in unread:
            unread_rows[place] = row
        source = to_device(unread_rows, device)
        ids = torch.where(source >= 0, rows.last_token[source.clamp(min=0)], ids)
    batch = ForwardBatch(
        token_ids=ids,
        positions=to_device(places, device),
        slots=to_device(slots, device),
        request_ids=to_device(request_ids, device),
        page_tables=to_device(page_tables, device),
        query_lens=query_lens,
        context_lens=context_lens,
        sample_at=to_device(np.array(sample_at, dtype=np.int64), device),
        ffn_mode=mode,
        query_starts=None if query_starts is None else to_device(query_starts, device),
        active=active,
        union=None if active is None else active.new_zeros(len(active)),
        thresholds=_thresholds(items, device),
        budgets=_budgets(items, page_size, device, measured=measures_pages),
    )
    return StepInputs(batch, [item.request for item in items if item.samples])


def _thresholds(items: list[ScheduledRequest], device: torch.device) -> Tensor | None:
    """Each token's threshold [T], NaN for the predictors' own; None where no request has one."""
    values = [item.request.sampling.threshold for item in items]
    if all(value is None for value in values):
        return None
    counts = [item.num_tokens for item in items]
    each = np.array([np.nan if v is None else v for v in values], dtype=np.float32)
    return to_device(np.repeat(each, counts), device)


def _budgets(
    items: list[ScheduledRequest], page_size: int, device: torch.device, *, measured: bool
) -> PageBudgets | None:
    """Each token's page budget; None where every token reads all of its context.

    A token has one by its place in the request, not by the step that computes it: after a
    preemption the same tokens have it again.
    """
    if all(item.end <= item.request.num_exact_tokens for item in items):
        return None
    counts: list[int] = []
    values: list[tuple[int, float, bool]] = []
    for item in items:
        choice = item.request.sampling.pages or PageChoice(0)
        num_exact = min(max(0, item.request.num_exact_tokens - item.start), item.num_tokens)
        counts += num_exact, item.num_tokens - num_exact
        pages = -(-choice.budget // page_size)
        values += (0, 1.0, False), (pages, choice.share, choice.gated)
    each = np.repeat(np.array(values, dtype=np.float32), counts, axis=0)
    pages, shares, gated = np.ascontiguousarray(each.T)
    is_mixed = len(items) < len(pages)
    return PageBudgets(
        pages=to_device(pages.astype(np.int32), device),
        shares=to_device(shares, device),
        gated=to_device(gated, device),
        tokens=to_device(np.flatnonzero(pages), device) if is_mixed else None,
        read=torch.zeros(len(pages), device=device) if measured else None,
    )
