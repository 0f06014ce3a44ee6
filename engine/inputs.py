"""From a schedule to the tensors of one step: a gather from the permanent rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.batch import FfnMode, ForwardBatch
from .request import Request
from .rows import Rows, row_of
from .scheduler import Schedule
from .transfer import to_device


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What the model sees, and the requests that sample at the end, in the order of its logits."""

    batch: ForwardBatch
    sampling: list[Request]


def gather(
    schedule: Schedule, rows: Rows, page_size: int, mode: FfnMode, active: Tensor | None
) -> StepInputs:
    """Build the batch. A token that was sampled by the step before and not yet read by the host is
    taken from its row on the device."""
    items = schedule.items
    query_lens = [item.num_tokens for item in items]
    starts = [item.start for item in items]
    row_ids = [row_of(item.request) for item in items]
    num_tokens = sum(query_lens)
    token_ids = np.empty(num_tokens, dtype=np.int64)
    positions = np.empty(num_tokens, dtype=np.int64)
    ends = np.cumsum(query_lens)
    source_rows = np.full(num_tokens, -1)  # the row of a token whose id only the device knows
    for item, row, end in zip(items, row_ids, ends.tolist(), strict=True):
        begin, stop = end - item.num_tokens, item.start + item.num_tokens
        known = item.request.token_ids[item.start : stop]
        token_ids[begin : begin + len(known)] = known
        positions[begin:end] = range(item.start, stop)
        if len(known) < item.num_tokens:
            assert len(known) == item.num_tokens - 1, (item.request.id, item.start, stop)
            token_ids[end - 1] = 0
            source_rows[end - 1] = row
    num_columns = -(-max(s + n for s, n in zip(starts, query_lens, strict=True)) // page_size)
    page_tables = rows.page_tables[row_ids, :num_columns]
    request_ids = np.repeat(np.arange(len(items)), query_lens)
    pages = page_tables[request_ids, positions // page_size].astype(np.int64)
    slots = pages * page_size + positions % page_size
    samples = [i for i, item in enumerate(items) if item.samples]

    device = rows.device
    ids = to_device(token_ids, device)
    if source_rows.max() >= 0:
        source = to_device(source_rows, device)
        ids = torch.where(source >= 0, rows.last_token[source.clamp(min=0)], ids)
    batch = ForwardBatch(
        token_ids=ids,
        positions=to_device(positions, device),
        slots=to_device(slots, device),
        request_ids=to_device(request_ids, device),
        page_tables=to_device(page_tables, device),
        query_lens=tuple(query_lens),
        context_lens=tuple(s + n for s, n in zip(starts, query_lens, strict=True)),
        sample_at=to_device(ends[samples] - 1, device),
        ffn_mode=mode,
        active=active,
    )
    return StepInputs(batch, [items[i].request for i in samples])
