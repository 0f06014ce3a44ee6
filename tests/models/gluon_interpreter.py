"""Runs the kernels in Gluon on a CPU, one program after the other, on torch tensors: it finds wrong
indices and masks, and what is read before it has come or overwritten before it has been read.

A copy into shared memory, or a product, may happen at any time until it is waited for. So kernels
run twice: once each copy happens as late as it may and each product at once, once the other way.
Shared memory begins as NaN, and so does what a tensor is made of.
"""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.runtime import JITFunction

from turbosparse.models.kernels import (
    gpu_epilogue,
    gpu_gated,
    gpu_norm,
    gpu_stream,
    gpu_stream_ffn,
    gpu_stream_linear,
)

IN_GLUON = (gpu_stream, gpu_stream_linear, gpu_stream_ffn)
NAN = torch.nan
KERNELS = ("product_kernel", "values_kernel", "down_kernel")
LAYOUTS = ("copied", "stored", "paired", "summed", "lying")


class Pointer:
    """An address, or a tensor of them, in memory [elements]."""

    def __init__(self, memory: Tensor, offset: int | Tensor = 0) -> None:
        self.memory, self.offset = memory, offset
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    @classmethod
    def to(cls, tensor: Tensor) -> Pointer:
        """All that lies from the tensor's beginning on."""
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        return cls(tensor.as_strided((size - tensor.storage_offset(),), (1,)))

    def __add__(self, offset: int | Tensor) -> Pointer:
        return Pointer(self.memory, self.offset + offset)

    def _at(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        offset = torch.as_tensor(self.offset)
        wanted = torch.ones_like(offset, dtype=torch.bool)
        if mask is not None:
            offset, wanted = torch.broadcast_tensors(offset, mask)
        inside = (offset >= 0) & (offset < self.memory.numel())
        assert (inside | ~wanted).all(), "an address outside of the tensor"
        return torch.where(wanted, offset, 0), wanted

    def load(self, mask: Tensor | None, other: float) -> Any:
        at, wanted = self._at(mask)
        value = self.memory[at]
        value = torch.where(wanted, value, torch.as_tensor(other, dtype=value.dtype))
        return value if value.ndim else value.item()

    def store(self, value: Any, mask: Tensor | None) -> None:
        at, wanted = self._at(mask)
        value = torch.as_tensor(value, dtype=self.memory.dtype).expand(at.shape)
        self.memory[at[wanted]] = value[wanted]


class Shared:
    """A part of shared memory."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.shape = list(memory.shape)

    def index(self, i: int) -> Shared:
        return Shared(self.memory[i])

    def slice(self, start: int, length: int, dim: int) -> Shared:
        return Shared(self.memory.narrow(dim, start, length))

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.memory.permute(order))

    def store(self, value: Tensor) -> None:
        assert value.shape == self.memory.shape
        self.memory.copy_(value)


class Sums:
    """What products add up to, some of them yet to happen."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.pending = value, []

    def settle(self, outstanding: int) -> None:
        while len(self.pending) > outstanding:
            a, b = self.pending.pop(0)
            self.value = self.value + a.memory.float() @ b.memory.float()


class Program:
    """The language, for one program at a time."""

    def __init__(self, late_copies: bool) -> None:
        self.late_copies = late_copies
        self.position, self.grid = (0, 0), (1, 1)
        self.uncommitted: list[Any] = []
        self.groups: list[list[Any]] = []

    def copy(self, place: Shared, source: Pointer, mask: Tensor | None = None) -> None:
        self.uncommitted.append((place, source, mask))
        if not self.late_copies:
            place.store(source.load(mask, 0.0))

    def commit(self) -> None:
        self.groups.append(self.uncommitted)
        self.uncommitted = []

    def wait_group(self, outstanding: int) -> None:
        while len(self.groups) > outstanding:
            for place, source, mask in self.groups.pop(0):
                if self.late_copies:
                    place.store(source.load(mask, 0.0))

    def multiply(self, a: Shared, b: Shared, acc: Any, is_async: bool) -> Sums:
        assert is_async
        sums = acc if isinstance(acc, Sums) else Sums(acc)
        sums.pending.append((a, b))
        if self.late_copies:
            sums.settle(0)
        return sums

    def wait_products(self, outstanding: int, deps: list[Any]) -> Any:
        (sums,) = deps
        if isinstance(sums, Tensor):
            return sums
        sums.settle(outstanding)
        return sums if outstanding else sums.value

    def add(self, pointer: Pointer, value: int, sem: str, scope: str) -> int:
        before = pointer.load(None, 0)
        pointer.store(before + value, None)
        return before

    def language(self) -> SimpleNamespace:
        """`triton.experimental.gluon.language`."""
        return SimpleNamespace(
            **vars(elementwise()),
            static_range=range,
            arange=lambda first, end, layout: torch.arange(first, end),
            zeros=lambda size, kind, layout: torch.zeros(size, dtype=kind),
            reshape=lambda x, size: x.reshape(size),
            permute=lambda x, order: x.permute(order),
            split=lambda x: (x[..., 0], x[..., 1]),
            convert_layout=lambda x, layout: x,
            sum=lambda x, dim: x.sum(dim),
            minimum=min,
            cdiv=lambda a, b: -(-a // b),
            SliceLayout=lambda dim, layout: None,
            AutoLayout=lambda: None,
            program_id=lambda axis: self.position[axis],
            num_programs=lambda axis: self.grid[axis],
            allocate_shared_memory=lambda kind, size, layout: Shared(
                torch.full(size, NAN, dtype=kind)
            ),
            load=lambda at, mask=None, other=0, cache_modifier="": at.load(mask, other),
            store=lambda at, value, mask=None: at.store(value, mask),
            atomic_add=self.add,
        )


def elementwise() -> SimpleNamespace:
    """What Triton's own functions, of which some are used here too, find in `triton.language`."""
    return SimpleNamespace(
        float32=torch.float32,
        int64=torch.int64,
        exp=torch.exp,
        rsqrt=torch.rsqrt,
        maximum=lambda x, y: max(x, y) if isinstance(x, int) else torch.clamp_min(x, y),
        where=lambda wanted, x, y: (
            torch.where(wanted, x, y) if isinstance(wanted, Tensor) else (x if wanted else y)
        ),
    )


def empty(*size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(size, NAN if dtype.is_floating_point else 0, dtype=dtype, device=device)


class Interpreted:
    """A kernel that is launched on a CPU."""

    def __init__(self, kernel: Any, program: Program) -> None:
        self.function, self.program = kernel.fn, program

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            values = [Pointer.to(a) if isinstance(a, Tensor) else a for a in arguments]
            self.program.grid = (*grid, 1)[:2]
            for position in product(*map(range, self.program.grid)):
                self.program.position = position
                self.function(*values, **constants)
                self.program.wait_group(0)
                assert not self.program.uncommitted

        return launch


def interpret(monkeypatch: Any, *, late_copies: bool) -> None:
    """Until the test ends, these kernels run here."""
    program = Program(late_copies)
    fakes = {
        "gl": program.language(),
        "async_copy": SimpleNamespace(
            async_copy_global_to_shared=program.copy,
            commit_group=program.commit,
            wait_group=program.wait_group,
        ),
        "warpgroup_mma": program.multiply,
        "warpgroup_mma_wait": program.wait_products,
        **dict.fromkeys(("fence_async_shared", "debug_barrier"), lambda: None),
        **dict.fromkeys(LAYOUTS, lambda *sizes: None),
    }
    for module in (gpu_epilogue, gpu_gated, gpu_norm):
        monkeypatch.setattr(module, "tl", elementwise())
    monkeypatch.setattr(torch, "empty", empty)
    for module in IN_GLUON:
        for name, value in list(vars(module).items()):
            if name in KERNELS:
                monkeypatch.setattr(module, name, Interpreted(value, program))
            elif name in fakes:
                monkeypatch.setattr(module, name, fakes[name])
            elif isinstance(value, JITFunction):
                monkeypatch.setattr(module, name, value.fn)
