"""A step's tensors, gathered from the rows."""

import pytest
import torch

from turbosparse.engine.inputs import gather
from turbosparse.engine.request import Request, SamplingParams
from turbosparse.engine.rows import Rows
from turbosparse.engine.scheduler import Schedule, ScheduledRequest
from turbosparse.models.batch import FfnMode, ForwardBatch


def batch_of(*lens: tuple[int, int]) -> ForwardBatch:
    """For each request its new tokens and all that it has with them."""
    rows = Rows(num_rows=8, max_pages=4, vocab_size=50, device=torch.device("cpu"))
    items: list[ScheduledRequest] = []
    for new, total in lens:
        request = Request("r", list(range(total)), SamplingParams(max_tokens=9), total)
        rows.admit(request)
        items.append(ScheduledRequest(request, total - new, new, True))
    return gather(Schedule(items, []), rows, 16, FfnMode.DENSE, None).batch


@pytest.mark.parametrize(
    ("lens", "starts"),
    [
        ([(5, 5)], [0, 5]),
        ([(1, 9), (4, 20), (1, 1), (2, 2)], [0, 1, 5, 6, 8]),
    ],
)
def test_where_each_request_begins_in_a_step_with_pieces_of_prompts(lens, starts):
    batch = batch_of(*lens)
    assert batch.query_starts is not None
    assert batch.query_starts.dtype == torch.int32
    assert batch.query_starts.tolist() == starts


def test_a_step_of_one_token_each_needs_no_starts():
    assert batch_of((1, 9), (1, 1)).query_starts is None
