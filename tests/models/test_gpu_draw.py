"""The Triton kernels that choose tokens against the reference."""

import pytest
import torch
from on_gpu import DEVICE, gpu_only, random

from turbosparse.models.kernels import gpu, reference


def limits_of(num_rows: int, vocab: int, asked: str, seed: int = 0) -> reference.Limits | None:
    """Random top_k, top_p and min_p; those not asked for are off."""
    if asked == "none":
        return None
    generator = torch.Generator().manual_seed(seed)
    top_k = torch.randint(1, min(vocab, 20) + 1, (num_rows,), generator=generator)
    top_p = 0.05 + 0.9 * torch.rand(num_rows, generator=generator)
    min_p = 0.2 * torch.rand(num_rows, generator=generator)
    if asked not in ("top_k", "all"):
        top_k.fill_(vocab)
    if asked not in ("top_p", "all"):
        top_p.fill_(1.0)
    if asked not in ("min_p", "all"):
        min_p.fill_(0.0)
    return top_k.to(DEVICE), top_p.to(DEVICE), min_p.to(DEVICE)


def check_draw(num_rows: int, vocab: int, asked: str) -> None:
    """The same tokens: none of these points falls where rounding would decide."""
    logits = 4 * random(num_rows, vocab, seed=vocab)
    logits[:, vocab // 2 + 1 :: 7] = -torch.inf  # as a stop token before min_tokens
    generator = torch.Generator().manual_seed(vocab + 1)
    temperature = (0.3 + torch.rand(num_rows, generator=generator)).to(DEVICE)
    points = torch.rand(num_rows, generator=generator, dtype=torch.float64).to(DEVICE)
    limits = limits_of(num_rows, vocab, asked)
    got = gpu.draw(logits, temperature, points, limits)
    assert got.tolist() == reference.draw(logits, temperature, points, limits).tolist()


@pytest.mark.parametrize("asked", ["none", "top_k", "top_p", "min_p", "all"])
def test_draw(asked):
    for num_rows, vocab in ((1, 1), (3, 19), (5, 989), (2, 9001)):
        check_draw(num_rows, vocab, asked)


def drawn(weights: list[float], top_k: int, top_p: float, min_p: float) -> list[int]:
    """The tokens in the middle of each third of what is kept."""
    rows = torch.tensor(weights).log().expand(3, -1).contiguous().to(DEVICE)
    ones = torch.ones(3, device=DEVICE)
    points = (torch.arange(1, 6, 2) / 6).double().to(DEVICE)
    limits = (torch.full_like(points, top_k).long(), top_p * ones, min_p * ones)
    return gpu.draw(rows, ones, points, limits).tolist()


def test_draw_keeps_who_is_as_likely_as_the_last_one_kept():
    assert drawn([2, 4, 2, 1, 2], 2, 1.0, 0.0) == [0, 1, 4]
    assert drawn([2, 4, 2, 1, 2], 5, 0.5, 0.0) == [0, 1, 4]
    assert drawn([2, 4, 2, 1, 2], 5, 1.0, 0.49) == [0, 1, 4]


def test_top_p_is_a_share_of_top_k_without_those_who_tie():
    assert drawn([4, 3, 3, 3, 3, 3], 2, 0.55, 0.0) == [0] * 3
    assert drawn([4, 3, 3, 3, 3, 3], 2, 0.6, 0.0) == [0, 2, 4]


@pytest.mark.parametrize("off", [0, 1, 2])
def test_draw_at_the_ends_of_the_limits(off):
    """top_k 1, top_p 0 or min_p 1, two of them off: whatever the point, the likeliest is left."""
    logits = random(3, 99)
    limits = [torch.full((3,), 99), torch.ones(3), torch.zeros(3)]
    limits[off] = (torch.ones(3).long(), torch.zeros(3), torch.ones(3))[off]
    points = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64).to(DEVICE)
    ones = torch.ones(3, device=DEVICE)
    got = gpu.draw(logits, ones, points, tuple(limit.to(DEVICE) for limit in limits))
    assert got.tolist() == logits.argmax(-1).tolist()


def test_a_point_next_to_one_draws_a_token_that_can_be():
    """Sums of such weights round, to one side or the other by their order."""
    logits = 20 * random(30, 99)
    logits[:, 42:] = -torch.inf
    points = torch.full((30,), 1 - 2**-53, dtype=torch.float64, device=DEVICE)
    token_ids = gpu.draw(logits, torch.ones(30, device=DEVICE), points, None)
    assert (token_ids < 42).all()


def test_a_row_is_drawn_alone_as_in_company():
    num_rows, vocab = 3, 99
    logits, temperature = random(num_rows, vocab), random(num_rows, seed=1).abs() + 0.1
    points = random(num_rows, seed=2).double().sigmoid()
    limits = limits_of(num_rows, vocab, "all")
    together = gpu.draw(logits, temperature, points, limits)
    for r in range(num_rows):
        own = tuple(limit[r : r + 1] for limit in limits)
        alone = gpu.draw(logits[r : r + 1], temperature[r : r + 1], points[r : r + 1], own)
        assert alone.item() == together[r].item()


def check_most_likely(num_rows: int, vocab: int) -> None:
    logits = random(num_rows, vocab, seed=vocab).round(decimals=1)  # some are as likely
    logits[:, : vocab // 3] = -torch.inf
    assert torch.equal(gpu.most_likely(logits).cpu(), logits.cpu().argmax(-1))


def test_most_likely():
    for num_rows, vocab in ((1, 1), (3, 7), (2, 19), (5, 989), (2, 9001)):
        check_most_likely(num_rows, vocab)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # the interpreter's numpy
def test_the_most_likely_is_the_first_of_equals_and_some_token_of_nan():
    logits = random(4, 500)
    logits[0] = -torch.inf
    logits[1, [470, 30, 31]] = 9.0
    logits[2] = torch.nan
    logits[3] = 0.0
    found = gpu.most_likely(logits).tolist()
    assert found[:2] == [0, 30]
    assert 0 <= found[2] < 500
    assert found[3] == 0
    wide = random(3, 600)[:, :500]
    assert torch.equal(gpu.most_likely(wide).cpu(), wide.cpu().argmax(-1))


@gpu_only
@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 32002), (256, 32000), (3, 262144)])
def test_most_likely_of_whole_vocabularies(num_rows, vocab):
    check_most_likely(num_rows, vocab)
    check_most_likely(num_rows, vocab)  # counters are back at zero


@gpu_only
@pytest.mark.parametrize("asked", ["none", "top_k", "top_p", "min_p", "all"])
@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 32002), (128, 32002), (3, 262144)])
def test_draw_of_whole_vocabularies(num_rows, vocab, asked):
    """Tokens are so many that rounding decides now and then: the point is within 1e-6 of the
    token's share of what the reference keeps."""
    logits = 3 * random(num_rows, vocab)
    ones = torch.ones(num_rows, device=DEVICE)
    points = random(num_rows, seed=1).double().sigmoid()
    limits = limits_of(num_rows, vocab, asked)
    token_ids = gpu.draw(logits, ones, points, limits)[:, None]
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    if limits is not None:
        weights = torch.where(weights >= reference._least(weights, *limits), weights, 0)
    shares = weights.double() / weights.double().sum(-1, keepdim=True)
    upper = shares.cumsum(-1).gather(1, token_ids)[:, 0]
    lower = upper - shares.gather(1, token_ids)[:, 0]
    assert (lower - 1e-6 <= points).all()
    assert (points <= upper + 1e-6).all()
