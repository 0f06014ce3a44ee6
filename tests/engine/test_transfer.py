"""What goes to the device in one copy."""

import numpy as np
import pytest
import torch

from turbosparse.engine.transfer import ALIGNMENT, to_device_together

ARRAYS = {
    "ids": np.arange(5),
    "flags": np.array([True, False, True]),
    "none": np.array([], dtype=np.int64),
    "tables": np.arange(24, dtype=np.int32).reshape(4, 6)[:, 1:4],
    "points": np.array([0.25], dtype=np.float64),
}


def check(device):
    sent = to_device_together(ARRAYS, device)
    assert list(sent) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert sent[name].device.type == device.type
        assert torch.equal(sent[name].cpu(), torch.tensor(array))
    return sent


def test_arrays_keep_their_names_types_and_shapes():
    check(torch.device("cpu"))
    assert to_device_together({}, torch.device("cpu")) == {}


@pytest.mark.gpu
def test_on_a_gpu_they_lie_apart_in_one_memory():
    sent = check(torch.device("cuda"))
    first = sent["ids"].data_ptr()
    assert all((t.data_ptr() - first) % ALIGNMENT == 0 for t in sent.values() if t.numel())
    assert len({t.untyped_storage().data_ptr() for t in sent.values()}) == 1
    assert to_device_together({}, torch.device("cuda")) == {}
