"""Which kernels a step spends its time in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

STEPS = 5


def table(run: Callable[[], object], device: torch.device) -> str:
    """Kernel, calls a step, µs a call, ms a step; the largest first."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    run()
    with profile(activities=[activity], acc_events=True) as measured:
        for _ in range(STEPS):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    rows: list[tuple[float, str]] = []
    for event in measured.key_averages():
        total = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if total:
            calls = event.count / STEPS
            each = total / event.count
            line = f"{event.key[:52]:<52} {calls:6.0f} {each:8.1f} us {total / STEPS / 1e3:8.3f} ms"
            rows.append((total, line))
    return "\n".join(line for _, line in sorted(rows, reverse=True)[:20])
