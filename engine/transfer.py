"""Copies between host and device that wait for nothing.

On a GPU they go through page-locked memory from torch's cache, which is not handed out again before
the copy has been made: neither side ever writes what the other still reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 64  # bytes; kernels read 16 at a time
Arrays = dict[str, NDArray[np.generic]]


def to_device(
    values: NDArray[np.generic] | Sequence[float],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The values as a tensor there; on a CPU an array's own memory."""
    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def to_device_together(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors there, by their names, in one copy: a GPU waits for each as long as one
    of its smaller kernels takes."""
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    if device.type == "cpu":
        return tensors
    starts: dict[str, int] = {}
    size = 0
    for name, tensor in tensors.items():
        starts[name] = size
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    for name, tensor in tensors.items():
        _part(host, starts[name], tensor).copy_(tensor)
    there = host.to(device, non_blocking=True)
    return {name: _part(there, starts[name], tensor) for name, tensor in tensors.items()}


def _part(memory: Tensor, start: int, like: Tensor) -> Tensor:
    """Some bytes as a tensor like another."""
    return memory[start : start + like.nbytes].view(like.dtype).view(like.shape)


class HostCopy:
    """A tensor on its way to the host."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._ready: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def array(self) -> NDArray[np.generic]:
        """The copy, once it has arrived."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._host.numpy()
