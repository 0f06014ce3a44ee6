"""Which steps measure what they keep."""

from types import SimpleNamespace

import pytest
import torch

from turbosparse.engine import measuring
from turbosparse.engine.measuring import Measuring
from turbosparse.models.config import Activation


def schedule(num_tokens, *starts, reports=False):
    sampling = SimpleNamespace(report_active=reports)
    request = SimpleNamespace(sampling=sampling, num_prompt_tokens=10)
    items = [SimpleNamespace(request=request, start=start) for start in starts]
    return SimpleNamespace(items=items, num_tokens=num_tokens)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now.seconds)
    return now


def of(device, activation=Activation.DRELU):
    return Measuring(SimpleNamespace(activation=activation, num_layers=3), torch.device(device))


def test_on_a_cpu_every_16th_step():
    own = of("cpu")
    assert [own.is_due(schedule(7, 0)) for _ in range(48)] == [n % 16 == 15 for n in range(48)]


def test_on_a_gpu_a_step_of_decodes_alone_every_ten_seconds(clock):
    own = of("cuda")
    assert not own.is_due(schedule(7, 0)), "its first token would wait"
    assert own.is_due(schedule(2, 10, 12))
    assert not own.is_due(schedule(2, 11, 13))
    clock.seconds += 10
    assert not own.is_due(schedule(9, 0, 14))
    assert own.is_due(schedule(1, 15))
    assert not own.is_due(schedule(1, 16))


def test_fractions_are_of_those_who_ask_and_of_models_that_skip():
    own = of("cpu")
    assert own.fractions(schedule(4, 0), is_due=False) is None
    assert own.fractions(schedule(4, 0), is_due=True).shape == (3, 4)
    assert own.fractions(schedule(4, 0, reports=True), is_due=False).shape == (3, 4)
    dense = of("cpu", Activation.SILU)
    assert dense.fractions(schedule(4, 0, reports=True), is_due=True) is None
