"""The only door to the kernels: every op under one name, its implementation chosen once by device
and dtype, and handed to the layers.

To add kernels: a module of this package with `declines(device, dtype)` and any of the ops below
under the same name and signature, and its name in `BACKENDS`. An op that a backend lacks falls
through to the next; `reference` has them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from ..batch import FfnMode, ForwardBatch, Routing
from ..config import Activation
from .reference import Choice, Limits
from .reference_pages import Gate
from .reference_predict import Scales

BACKENDS = ("gpu", "cpu", "reference")  # in order of preference
DEVICES = {"gpu": "cuda", "cpu": "cpu"}  # known without importing Triton or numba


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each op; meanings, shapes and arguments are those of `reference`."""

    linear: Callable[[Tensor, Tensor], Tensor]
    norm_linear: Callable[[Tensor, Tensor, float, Tensor], Tensor]
    linear_add: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    head: Callable[[Tensor, Tensor, float, Tensor], Tensor]
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    attention: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, ForwardBatch, float, int | None], Tensor
    ]
    sparse_attention: Callable[
        [
            Tensor,
            Tensor,
            Tensor,
            Tensor,
            Tensor,
            Tensor,
            Gate | None,
            ForwardBatch,
            float,
            int | None,
        ],
        Tensor,
    ]
    predict: Callable[[Tensor, Tensor, Tensor, float | Tensor, Scales | None], Tensor]
    sketch: Callable[[Tensor, Tensor, Tensor, float | Tensor], Tensor]
    gated: Callable[[Tensor, Tensor, Activation, float], Tensor]
    norm_gated: Callable[[Tensor, Tensor, float, Tensor, Activation], Tensor]
    ffn: Callable[[Tensor, Tensor, Tensor, Tensor | None, Activation, float, FfnMode], Tensor]
    ffn_add: Callable[
        [
            Tensor,
            Tensor,
            float,
            Tensor,
            Tensor,
            Choice,
            Activation,
            float,
            FfnMode,
            float,
        ],
        Tensor,
    ]
    route: Callable[[Tensor, Tensor, int], Routing]
    norm_route: Callable[[Tensor, Tensor, float, Tensor, int], tuple[Tensor, Routing]]
    predict_experts: Callable[
        [Tensor, Tensor, Tensor, float | Tensor, Routing, Scales | None], Tensor
    ]
    experts: Callable[
        [
            Tensor,
            Tensor,
            float,
            Tensor,
            Tensor,
            Tensor | None,
            Activation,
            float,
            FfnMode,
            Routing,
        ],
        Tensor,
    ]
    most_likely: Callable[[Tensor], Tensor]
    draw: Callable[[Tensor, Tensor, Tensor, Limits | None], Tensor]

    @property
    def modes(self) -> tuple[FfnMode, ...]:
        """The FFN modes that run in ways of their own: on a GPU, TOKEN and UNION are one."""
        one = self.chosen()["ffn"] == "gpu"
        return (FfnMode.UNION, FfnMode.DENSE) if one else tuple(FfnMode)

    @property
    def stacks_experts(self) -> bool:
        """Whether experts are to be computed as one, and not in turn."""
        return self.chosen()["experts"] == "gpu"

    def chosen(self) -> dict[str, str]:
        """Op -> the backend that runs it, for the start-up log and `/health`."""
        return {f.name: getattr(self, f.name).__module__.rpartition(".")[2] for f in fields(self)}


def select(
    device: torch.device, dtype: torch.dtype, backends: tuple[str, ...] = BACKENDS
) -> tuple[Ops, dict[str, str]]:
    """The best ops for this device and dtype, and why the backends passed over declined."""
    declined: dict[str, str] = {}
    usable: list[ModuleType] = []
    for name in backends:
        if DEVICES.get(name, device.type) != device.type:
            declined[name] = f"needs a {DEVICES[name]} device, not {device.type}"
            continue
        try:
            module = import_module(f".{name}", __package__)
        except ModuleNotFoundError as error:
            declined[name] = f"{error.name} is not installed"
            continue
        reason = module.declines(device, dtype)
        if reason is None:
            usable.append(module)
        else:
            declined[name] = reason

    def first(op: str) -> Callable[..., Tensor]:
        return next(getattr(module, op) for module in usable if hasattr(module, op))

    return Ops(**{f.name: first(f.name) for f in fields(Ops)}), declined  # type: ignore[arg-type]


def set_num_threads(num_threads: int, ops: Ops) -> None:
    """Give the chosen kernels their CPU threads, and torch what is left to do.

    Two pools that spin for one core's work slow each other down many times over, so where our own
    kernels run, torch's small ops stay on the calling thread.
    """
    uses_kernels = "cpu" in ops.chosen().values()
    if uses_kernels:
        import_module(".cpu", __package__).set_num_threads(num_threads)
    torch.set_num_threads(1 if uses_kernels else num_threads)


def get_num_threads(ops: Ops) -> int:
    """The CPU threads that the chosen kernels take."""
    if "cpu" in ops.chosen().values():
        return import_module(".cpu", __package__).get_num_threads()
    return torch.get_num_threads()
