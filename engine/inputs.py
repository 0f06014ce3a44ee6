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
from .transfer import Arrays, to_device_together


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model sees, and the requests that sample at the end, in the order of its logits."""

    batch: ForwardBatch
    sampling: list[Request]
    sampling_rows: Tensor  # [S] int64


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
    request_ids = np.arange(len(items))
    row_ids = np.array([row_of(item.request) for item in items])
    page_tables = rows.page_tables[row_ids, : -(-max(context_lens) // page_size)]
    arrays: Arrays = {}
    if len(items) < len(positions):
        request_ids = np.repeat(request_ids, query_lens)
        arrays["query_starts"] = np.cumsum((0, *query_lens), dtype=np.int32)
    places = np.array(positions, dtype=np.int64)
    pages = page_tables[request_ids, places // page_size].astype(np.int64)
    arrays |= {
        "token_ids": np.array(token_ids, dtype=np.int64),
        "positions": places,
        "slots": pages * page_size + places % page_size,
        "request_ids": request_ids,
        "page_tables": page_tables,
        "sample_at": np.array(sample_at, dtype=np.int64),
        "sampling_rows": row_ids[[item.samples for item in items]],
    }
    arrays |= _unread(unread, len(token_ids)) | _thresholds(items) | _budgets(items, page_size)

    sent = to_device_together(arrays, rows.device)
    ids = sent["token_ids"]
    if unread:
        ids = torch.where(sent["is_unread"], rows.last_token[sent["unread_rows"]], ids)
    batch = ForwardBatch(
        token_ids=ids,
        positions=sent["positions"],
        slots=sent["slots"],
        request_ids=sent["request_ids"],
        page_tables=sent["page_tables"],
        query_lens=query_lens,
        context_lens=context_lens,
        sample_at=sent["sample_at"],
        ffn_mode=mode,
        query_starts=sent.get("query_starts"),
        active=active,
        union=None if active is None else active.new_zeros(len(active)),
        thresholds=sent.get("thresholds"),
        budgets=_page_budgets(sent, measured=measures_pages),
    )
    sampling = [item.request for item in items if item.samples]
    return StepInputs(batch, sampling, sent["sampling_rows"])


def _unread(unread: list[tuple[int, int]], num_tokens: int) -> Arrays:
    """Which tokens are taken from a row, and from which; nothing where none is."""
    if not unread:
        return {}
    is_unread, rows = np.zeros(num_tokens, dtype=np.bool_), np.zeros(num_tokens, dtype=np.int64)
    for place, row in unread:
        is_unread[place], rows[place] = True, row
    return {"is_unread": is_unread, "unread_rows": rows}


def _thresholds(items: list[ScheduledRequest]) -> Arrays:
    """Each token's threshold [T], NaN for the predictors' own; nothing where no request has one."""
    values = [item.request.sampling.threshold for item in items]
    if all(value is None for value in values):
        return {}
    counts = [item.num_tokens for item in items]
    each = np.array([np.nan if v is None else v for v in values], dtype=np.float32)
    return {"thresholds": np.repeat(each, counts)}


def _budgets(items: list[ScheduledRequest], page_size: int) -> Arrays:
    """Each token's page budget; nothing where every token reads all of its context.

    A token has one by its place in the request, not by the step that computes it: after a
    preemption the same tokens have it again.
    """
    if all(item.end <= item.request.num_exact_tokens for item in items):
        return {}
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
    arrays: Arrays = {"pages": pages.astype(np.int32), "shares": shares, "gated": gated}
    if len(items) < len(pages):
        arrays["with_budget"] = np.flatnonzero(pages)
    return arrays


def _page_budgets(sent: dict[str, Tensor], *, measured: bool) -> PageBudgets | None:
    if "pages" not in sent:
        return None
    return PageBudgets(
        pages=sent["pages"],
        shares=sent["shares"],
        gated=sent["gated"],
        tokens=sent.get("with_budget"),
        read=torch.zeros_like(sent["shares"]) if measured else None,
    )
