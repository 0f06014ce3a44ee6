# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportMissingImports=false
"""How kernels follow one another on a GPU: programmatic dependent launch, weights that are fetched
ahead, and the counters by which the last program of a group is known.

With dependent launch a kernel's programs start while the one before is still running. So every
kernel asks for weights as early as it likes, but calls `gdc_wait` before it reads what another
kernel wrote, and before it writes anything.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import ceil_div

MAX_GROUPS = 1 << 16


@cache
def overlap(device: torch.device) -> dict[str, bool]:
    """Arguments of a launch; the hardware has it from compute capability 9.0 on."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9:
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


@cache
def counters(device: torch.device) -> Tensor:
    """[MAX_GROUPS] int32, all zero whenever no kernel runs: the last program of a group, who finds
    that all others have counted, sets its group's back."""
    return torch.zeros(MAX_GROUPS, dtype=torch.int32, device=device)


@triton.jit
def fetch(ptr, size, CHUNK: tl.constexpr, THREADS: tl.constexpr):
    """Every program asks for its share of `size` bytes at ptr into the L2 cache, CHUNK a thread:
    the kernel after this one will read them, and this one leaves the memory idle."""
    if CHUNK > 0:
        program = tl.program_id(1) + tl.num_programs(1) * tl.program_id(2)
        program = tl.program_id(0) + tl.num_programs(0) * program
        at = (program.to(tl.int64) * THREADS + tl.arange(0, THREADS)) * CHUNK
        tl.inline_asm_elementwise(
            """{ .reg .pred inside; setp.lt.s64 inside, $2, $3;
            @inside cp.async.bulk.prefetch.L2.global [$1], $4; mov.b32 $0, 0; }""",
            "=r,l,l,l,r",
            [
                ptr.to(tl.int64) + at,
                at,
                tl.full((THREADS,), 0, tl.int64) + size - CHUNK + 1,
                tl.full((THREADS,), CHUNK, tl.int32),
            ],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


def share(weight: Tensor | None, programs: int, threads: int) -> int:
    """The CHUNK with which so many programs fetch all of a weight; 0 where nothing is fetched."""
    if weight is None or not overlap(weight.device)["PDL"]:
        return 0
    size = weight.numel() * weight.element_size()
    return 16 * ceil_div(ceil_div(size, 16), programs * threads)
