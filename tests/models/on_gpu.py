"""Where the tests of the Triton kernels run, and what they count as equal: under Triton's
interpreter on a CPU, compiled on a GPU.

The interpreter computes in fp32 (its bf16 arithmetic is wrong) and runs programs one by one, so it
finds wrong indices and masks, not races; the `gpu` tests run the real thing at real sizes.
"""

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
gpu_only = pytest.mark.gpu
_patched: set[int] = set()


def _call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    """A kernel calls a device function. Triton then puts its interpreter into `triton.language`,
    where it is since the kernel began, and into `triton.language.core`, where it stays: looking for
    what to replace at every call took a quarter of these tests, and once for a module is enough."""
    if id(function.fn.__globals__) not in _patched:
        interpreter._patch_lang(function.fn)
        _patched.add(id(function.fn.__globals__))
    return function.rewrite()(*args, **kwargs)


if DEVICE.type == "cpu":
    interpreter.InterpretedFunction.__call__ = _call


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """fp32 to rounding; bf16 to a few units in the last place of the largest value."""
    if got.dtype == torch.float32:
        torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-4)
    else:
        unit = want.float().abs().max().item() * 2**-8
        torch.testing.assert_close(got.float(), want.float(), atol=3 * unit, rtol=0.02)
