"""From a schedule to the tensors of one step: a gather from the permanent rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..models.batch import FfnMode, ForwardBatch
from .request import Request
from .rows import Rows
from .scheduler import Schedule


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
    row_ids = [item.request.row for item in items]
    num_tokens = sum(query_lens)
    token_ids = np.empty(num_tokens, dtype=np.int64)
    positions = np.empty(num_tokens, dtype=np.int64)
    ends = np.cumsum(query_lens)
    from_device: list[int] = []  # places in the step whose token id only the device knows
    for item, end in zip(items, ends.tolist(), strict=True):
        begin, stop = end - item.num_tokens, item.start + item.num_tokens
        known = item.request.token_ids[item.start : stop]
        token_ids[begin : begin + len(known)] = known
        positions[begin:end] = range(item.start, stop)
        if len(known) < item.num_tokens:
            assert len(known) == item.num_tokens - 1, (item.request.id, item.start, stop)
            token_ids[end - 1] = 0
            from_device.append(end - 1)
    num_columns = -(-max(s + n for s, n in zip(starts, query_lens, strict=True)) // page_size)
    page_tables = rows.page_tables[row_ids, :num_columns]
    request_ids = np.repeat(np.arange(len(items)), query_lens)
    pages = page_tables[request_ids, positions // page_size].astype(np.int64)
    slots = pages * page_size + positions % page_size
    samples = [i for i, item in enumerate(items) if item.samples]

    def to_device(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
        return torch.from_numpy(array).to(rows.device, non_blocking=True)

    ids = to_device(token_ids)
    if from_device:
        requests = request_ids[from_device].tolist()
        ids[from_device] = rows.last_token[[row_ids[i] for i in requests]]
    batch = ForwardBatch(
        token_ids=ids,
        positions=to_device(positions),
        slots=to_device(slots),
        request_ids=to_device(request_ids),
        page_tables=to_device(page_tables),
        query_lens=tuple(query_lens),
        context_lens=tuple(s + n for s, n in zip(starts, query_lens, strict=True)),
        sample_at=to_device(ends[samples] - 1),
        ffn_mode=mode,
        active=active,
    )
    return StepInputs(batch, [items[i].request for i in samples])
