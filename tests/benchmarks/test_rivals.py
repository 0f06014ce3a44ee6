"""What a user would run instead: timed while it does what it is compared for."""

from types import SimpleNamespace

import pytest
import rivals
import torch

from turbosparse.models.load import load
from turbosparse.models.tools import shapes

CPU = torch.device("cpu")


def test_transformers_is_measured_by_the_distance_of_its_tokens(tmp_path):
    """The model that it runs is the one that we are held against: same shape, same dtype."""
    shapes.describe_named(tmp_path, "mistral-16m")
    rival = rivals.Rival(tmp_path, CPU, torch.float32)
    ours = load(tmp_path, CPU, torch.float32)
    assert rival.model.num_parameters() == ours.num_parameters
    assert 0 < rival.generate(2, 60) < 1


class Manager:
    """Continuous batching whose second request begins after five tokens of the first."""

    def __init__(self, finished=10**6, error=None):
        self.outputs = self.tokens(finished, error)

    def tokens(self, finished, error):
        for last in range(40):
            for name, first in (("a", 0), ("b", 5)):
                if last >= first:
                    times = [float(i) for i in range(first, last + 1)]
                    is_finished = len(times) >= finished
                    yield SimpleNamespace(
                        request_id=name,
                        timestamps=times,
                        error=error,
                        is_finished=lambda is_finished=is_finished: is_finished,
                    )
            yield None  # nothing came in time

    def get_result(self, timeout):
        return next(self.outputs, None)

    def is_running(self):
        return self.outputs.gi_frame is not None


def test_continuous_batching_is_timed_while_all_requests_decode():
    times = rivals.together(Manager(), 2)
    whole = [float(i) for i in range(6, 6 + rivals.TOGETHER)]
    assert times == [whole[rivals.SETTLING :]] * 2


@pytest.mark.parametrize(
    ("manager", "batch", "why"),
    [
        (Manager(finished=4), 2, "a request ended before all of them decoded"),
        (Manager(error="out of blocks"), 2, "out of blocks"),
        (Manager(), 3, "it stopped before all requests decoded"),
    ],
)
def test_continuous_batching_that_never_decodes_all_says_why(manager, batch, why):
    with pytest.raises(RuntimeError, match=why):
        rivals.together(manager, batch)
