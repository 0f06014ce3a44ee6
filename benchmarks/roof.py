"""Bytes a second that reading alone reaches on this device: the roof for a step that reads."""

from __future__ import annotations

import time
from importlib import import_module

import torch
from decode import median_seconds

from turbosparse.models.capture import captured

PAPER_ROOF = 4.35e12  # an H200, measured by the same kernel in an earlier run
ROWS, COLUMNS = 28672, 4096  # one layer's gate and up of a 7B model: 235 MB in bf16
NUM_BUFFERS = 8  # read in turn, so that no cache holds what is read


def bandwidth(device: torch.device) -> float:
    """One program a row, under a graph, over buffers that no cache holds; a plain sum on a CPU."""
    if device.type == "cuda":
        return _bandwidth_of_rows(device)
    data = torch.ones(1 << 24)
    times: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - started)
    return data.numel() * data.element_size() / min(times)


def _bandwidth_of_rows(device: torch.device) -> float:
    read = import_module("roof_kernel").read_rows
    data = torch.zeros(NUM_BUFFERS, ROWS, COLUMNS, device=device, dtype=torch.bfloat16)
    out = torch.empty(ROWS, device=device)

    def run() -> None:
        for buffer in data:
            read(buffer, out)

    seconds = median_seconds(captured(run)[0].replay, device)
    return data.numel() * data.element_size() / seconds
