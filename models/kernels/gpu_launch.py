"""How kernels follow one another on a GPU: programmatic dependent launch, and the counters by which
the last program of a group is known.

With dependent launch a kernel's programs start while the one before is still running. So every
kernel asks for weights as early as it likes, but calls `gdc_wait` before it reads what another
kernel wrote, and before it writes anything. A kernel that lets the next one in only after its own
wait vouches for all that came before itself: that the next one may read before it waits.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

MAX_GROUPS = 1 << 16
First = TypeVar("First")
Second = TypeVar("Second")


@cache
def overlap(device: torch.device) -> dict[str, bool]:
    """Arguments of a launch; the hardware has it from compute capability 9.0 on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9:
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def describes(device: torch.device) -> bool:
    """Whether a tile of a matrix is copied at one instruction, by a descriptor of the matrix."""
    return overlap(device)["PDL"]


@cache
def multiprocessors(device: torch.device) -> int:
    """How many there are; a Hopper's number where kernels are interpreted."""
    if device.type != "cuda":
        return 132
    properties = cast("Any", torch.cuda.get_device_properties(device))
    return properties.multi_processor_count


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of a multiprocessor that programs may take, but for what the system keeps of each."""
    if device.type != "cuda":
        return 227 << 10
    properties = cast("Any", torch.cuda.get_device_properties(device))
    return properties.shared_memory_per_block_optin


def run_at_once(num_programs: int, device: torch.device) -> bool:
    """Whether so many programs do that have the registers to ask for memory early: two of them
    share a multiprocessor."""
    return num_programs <= 2 * multiprocessors(device)


@cache
def counters(device: torch.device) -> Tensor:
    """[MAX_GROUPS] int32, all zero whenever no kernel runs: the last program of a group, who finds
    that all others have counted, sets its group's back."""
    return torch.zeros(MAX_GROUPS, dtype=torch.int32, device=device)


def aside(
    device: torch.device, first: Callable[[], First], second: Callable[[], Second]
) -> tuple[First, Second]:
    """Two results that do not need each other, computed at once: products of many tokens leave some
    of a GPU idle. `first`, the smaller one, has a stream of its own."""
    if device.type != "cuda":
        return first(), second()
    stream, current = _side_stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        one = first()
    other = second()
    current.wait_stream(stream)
    return one, other


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
