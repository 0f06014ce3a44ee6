"""Work on a GPU as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def captured(run: Callable[[], Result], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The same as a graph on the current device, and what it returned, which every replay writes
    anew. It runs once before, so that nothing is compiled or tuned while it is captured. Graphs of
    one `torch.cuda.graph_pool_handle` share their memory."""
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        result = run()
    return graph, result


@cache
def _stream(device: int) -> torch.cuda.Stream:
    """One for all: cuBLAS keeps a workspace, of 32 MB on a Hopper, for every stream that it has
    ever run on."""
    return torch.cuda.Stream(device)
