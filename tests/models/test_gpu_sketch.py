"""The Triton kernels of packed rows against the reference."""

import pytest
import torch
from on_gpu import DEVICE, gpu_only, random

from turbosparse.models.kernels import gpu, reference
from turbosparse.models.sparsity.sketch import quantised


def check(num_tokens, hidden, neurons, rows, bits, *, group=64, dtype=torch.float32):
    weights = random(neurons, rows, hidden, seed=1) / hidden**0.5
    codes, scales = quantised(weights, bits, group)
    x = random(num_tokens, hidden, dtype=dtype)
    scores = reference.sketch_scores(x.double(), codes, scales)
    # what a token alone is told and what many are differ by the rounding of a scaled number
    unclear = 1e-4 if dtype is torch.float32 else 2e-2
    for threshold in (0.2, -torch.inf, random(num_tokens, seed=3)):
        limit = threshold[:, None] if isinstance(threshold, torch.Tensor) else threshold
        clear = (scores - limit).abs() > unclear
        got = gpu.sketch(x, codes, scales, threshold)
        assert got.dtype == torch.bool
        assert got.device.type == DEVICE.type
        assert (got == (scores > limit))[clear].all()
        assert clear.float().mean() > 0.95


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "neurons", "rows", "group"),
    [(1, 96, 19, 2, 32), (1, 512, 67, 1, 128), (3, 512, 37, 2, 64), (19, 512, 70, 1, 32)],
)
def test_sketch(num_tokens, hidden, neurons, rows, group, bits):
    check(num_tokens, hidden, neurons, rows, bits, group=group)


def test_several_tokens_of_a_width_that_no_tile_divides():
    check(3, 96, 19, 2, 4, group=32)


def test_more_tokens_than_a_tile():
    check(70, 512, 5, 2, 3)


@gpu_only
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("num_tokens", [1, 2, 16, 17, 64, 300])
def test_sketch_at_7b(num_tokens, bits):
    check(num_tokens, 4096, 14336, 2, bits, dtype=torch.bfloat16)
    check(num_tokens, 4096, 11008, 1, bits, dtype=torch.bfloat16)
