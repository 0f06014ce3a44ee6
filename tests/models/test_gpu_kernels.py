"""The Triton kernels against the reference: under Triton's interpreter on a CPU, compiled on a GPU.

The interpreter computes in fp32 (its bf16 arithmetic is wrong) and runs programs one by one, so it
finds wrong indices and masks, not races; the `gpu` tests run the real thing at real sizes.
"""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.config import Activation
from turbosparse.models.kernels import gpu, gpu_attention, gpu_prefill, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SPARSE = [a for a in Activation if a.is_sparse]
gpu_only = pytest.mark.gpu


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


def check_ffn(num_tokens, hidden, neurons, activation, mode, density, dtype=torch.float32):
    gate_up = random(neurons, 2 * hidden, seed=1, dtype=dtype) / hidden**0.5
    down = random(neurons, hidden, seed=2, dtype=dtype) / 9
    x = random(num_tokens, hidden, dtype=dtype)
    mask = torch.rand(num_tokens, neurons, generator=torch.Generator().manual_seed(3)) < density
    mask = mask.to(DEVICE)
    # no gate is exactly 0.25 here, and fp32 sums agree far better than gates are apart
    threshold = 0.25 if activation is Activation.FATRELU and dtype == torch.float32 else 0.0
    want = reference.ffn(x, gate_up, down, mask, activation, threshold, FfnMode.DENSE)
    close(gpu.ffn(x, gate_up, down, mask, activation, threshold, mode), want)


@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize(
    ("num_tokens", "hidden", "neurons"), [(1, 19, 99), (3, 40, 131), (7, 64, 99)]
)
def test_ffn(num_tokens, hidden, neurons, mode):
    for activation in SPARSE:
        check_ffn(num_tokens, hidden, neurons, activation, mode, 0.2)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_ffn_of_no_neuron_and_of_all(density):
    check_ffn(2, 32, 99, Activation.DRELU, FfnMode.TOKEN, density)


@pytest.mark.parametrize("num_tokens", [1, 3, 6, 70])
def test_predict(num_tokens):
    residual, fc1, fc2 = random(num_tokens, 99), random(19, 99, seed=1), random(131, 19, seed=2)
    want = reference.predict(residual, fc1, fc2, 0.3)
    scores = (residual @ fc1.T).relu() @ fc2.T
    clear = (scores - 0.3).abs() > 1e-3  # near the threshold rounding may decide
    got = gpu.predict(residual, fc1, fc2, 0.3)
    assert got.dtype == torch.bool
    assert (got == want)[clear].all()
    assert clear.float().mean() > 0.98


def test_norm():
    x, weight = random(3, 99), random(99, seed=2)
    close(gpu.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def check_products(num_tokens, width, rows, dtype=torch.float32):
    x, norm = random(num_tokens, width, dtype=dtype), random(width, seed=1, dtype=dtype)
    weight = random(rows, width, seed=2, dtype=dtype) / width**0.5
    residual = random(num_tokens, rows, seed=3, dtype=dtype)
    close(gpu.linear(x, weight), reference.linear(x, weight))
    close(gpu.norm_linear(x, norm, 1e-5, weight), reference.norm_linear(x, norm, 1e-5, weight))
    want = reference.linear_add(x, weight, residual, 0.5)
    close(gpu.linear_add(x, weight, residual, 0.5), want)
    pairs = weight[: rows // 2 * 2].view(-1, 2 * width)
    for activation in (Activation.SILU, Activation.RELU):
        want = reference.norm_gated(x, norm, 1e-5, pairs, activation)
        close(gpu.norm_gated(x, norm, 1e-5, pairs, activation), want)


@pytest.mark.parametrize("num_tokens", [1, 3, 20])
@pytest.mark.parametrize(("width", "rows"), [(99, 19), (192, 70)])
def test_products(num_tokens, width, rows):
    check_products(num_tokens, width, rows)


def check_ffn_add(num_tokens, hidden, neurons, mode, masked, dtype=torch.float32):
    gate_up = random(neurons, 2 * hidden, seed=1, dtype=dtype) / hidden**0.5
    down = random(neurons, hidden, seed=2, dtype=dtype) / 9
    residual, norm = random(num_tokens, hidden, dtype=dtype), random(hidden, seed=4, dtype=dtype)
    kept = torch.rand(num_tokens, neurons, generator=torch.Generator().manual_seed(3)) < 0.2
    mask = kept.to(DEVICE) if masked else None
    arguments = (gate_up, down, mask, Activation.DRELU, 0.0, mode, 0.7)
    want = reference.ffn_add(residual, norm, 1e-5, *arguments)
    close(gpu.ffn_add(residual, norm, 1e-5, *arguments), want)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("mode", [FfnMode.UNION, FfnMode.DENSE])
def test_the_ffn_between_norm_and_residual(num_tokens, mode, masked):
    check_ffn_add(num_tokens, 48, 99, mode, masked)


def check_experts(num_tokens, hidden, neurons, rank, mode, dtype=torch.float32, num_experts=4):
    x, residual = (random(num_tokens, hidden, seed=i, dtype=dtype) for i in (0, 7))
    router = random(num_experts, hidden, seed=1, dtype=dtype)
    fc1 = random(num_experts * rank, hidden, seed=2, dtype=dtype) / hidden**0.5
    fc2 = random(num_experts * neurons, rank, seed=3, dtype=dtype) / rank**0.5
    gate_up = random(num_experts * neurons, 2 * hidden, seed=4, dtype=dtype) / hidden**0.5
    down = random(num_experts * neurons, hidden, seed=5, dtype=dtype) / 9
    want = reference.route(x, router, 2)
    routing = gpu.route(x, router, 2)
    torch.testing.assert_close(routing.weights, want.weights, atol=1e-5, rtol=1e-4)
    scores = reference.predict_experts(residual, fc1, fc2, 0.2, routing)
    found = gpu.predict_experts(residual, fc1, fc2, 0.2, routing)
    sent = (routing.weights != 0).repeat_interleave(neurons, 1)
    assert (scores == found)[sent].float().mean() > 0.995, "near the threshold rounding may decide"
    mask = scores.where(sent, True)  # what an expert's mask says of others must not matter
    arguments = (mask, Activation.DRELU, 0.0, mode, routing)
    want = reference.experts(x, gate_up, down, *arguments)
    close(gpu.experts(x, gate_up, down, *arguments), want)


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("mode", [FfnMode.TOKEN, FfnMode.DENSE])
def test_experts(num_tokens, mode):
    check_experts(num_tokens, 32, 48, 16, mode)


def batch_of(lens: list[tuple[int, int]], page_size: int, num_pages: int) -> ForwardBatch:
    """For each request its new tokens and all that it has with them; its pages are scattered."""
    width = -(-max(total for _, total in lens) // page_size)
    order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0))
    tables = order[: len(lens) * width].view(len(lens), width).int()
    places = [(b, p) for b, (n, total) in enumerate(lens) for p in range(total - n, total)]
    requests, positions = (torch.tensor(c) for c in zip(*places, strict=True))
    slots = tables[requests, positions // page_size].long() * page_size + positions % page_size
    query_lens = tuple(n for n, _ in lens)
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    return ForwardBatch(
        token_ids=torch.zeros_like(positions).to(DEVICE),
        positions=positions.to(DEVICE),
        slots=slots.to(DEVICE),
        request_ids=requests.to(DEVICE),
        page_tables=tables.to(DEVICE),
        query_lens=query_lens,
        context_lens=tuple(total for _, total in lens),
        sample_at=torch.arange(len(places)).to(DEVICE),
        ffn_mode=FfnMode.TOKEN,
        query_starts=None if max(query_lens) == 1 else starts.to(DEVICE),
    )


def decode_batch(lengths: list[int], page_size: int, num_pages: int) -> ForwardBatch:
    """One new token for each request."""
    return batch_of([(1, length) for length in lengths], page_size, num_pages)


def check_attention(lengths, heads, kv_heads, dim, window, dtype=torch.float32, page_size=16):
    num_pages = len(lengths) * -(-max(lengths) // page_size) + 2
    shape = (num_pages, kv_heads, page_size, dim)
    k, v = random(*shape, seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype)
    batch = decode_batch(lengths, page_size, num_pages)
    qkv = random(len(lengths), (heads + 2 * kv_heads) * dim, seed=3, dtype=dtype)
    angles = random(max(lengths), dim // 2, seed=4)
    rope = angles.cos(), angles.sin()
    k2, v2 = k.clone(), v.clone()
    want = reference.attention(qkv, *rope, k, v, batch, dim**-0.5, window)
    close(gpu.attention(qkv, *rope, k2, v2, batch, dim**-0.5, window), want)
    close(k2, k)
    close(v2, v)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 2, 16), (4, 4, 8)])
def test_attention(heads, kv_heads, dim, window):
    check_attention([1, 17, 150], heads, kv_heads, dim, window)


def check_prefill(lens, heads, kv_heads, dim, window, dtype=torch.float32, page_size=16):
    num_pages = len(lens) * -(-max(total for _, total in lens) // page_size) + 2
    batch = batch_of(lens, page_size, num_pages)
    shape = (num_pages, kv_heads, page_size, dim)
    k, v = (unwritten(random(*shape, seed=seed, dtype=dtype), batch) for seed in (1, 2))
    q = random(len(batch.positions), heads, dim, seed=3, dtype=dtype)
    want = reference.attend(q, k, v, batch, dim**-0.5, window)
    close(attend_prompts(q, k, v, batch, dim**-0.5, window), want)


def attend_prompts(q, k, v, batch, scale, window):
    places = batch.positions, batch.query_starts, batch.page_tables
    return gpu_prefill.attend(q, k, v, *places, scale, window)


def unwritten(cache: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
    """The cache with NaN wherever no token of the batch's requests has been written."""
    page_size = cache.shape[2]
    holes = torch.full_like(cache, torch.nan)
    for row, length in enumerate(batch.context_lens):
        at = torch.arange(length, device=cache.device)
        pages, offsets = batch.page_tables[row, at // page_size].long(), at % page_size
        holes[pages, :, offsets] = cache[pages, :, offsets]
    return holes


MIXED = [(9, 9), (1, 50), (37, 37), (5, 23), (1, 1), (33, 70)]


@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page_size"), [(6, 2, 16, 16), (4, 4, 8, 4), (5, 1, 24, 64)]
)
def test_pieces_of_prompts_among_decodes(heads, kv_heads, dim, page_size, window):
    check_prefill(MIXED, heads, kv_heads, dim, window, page_size=page_size)


def test_one_page_of_any_size():
    check_prefill([(45, 45)], 4, 2, 16, None, page_size=45)  # as calibration has it


def test_a_slot_below_zero_is_written_nowhere():
    batch = decode_batch([5], 16, 3)
    batch.slots.fill_(-1)
    k = torch.zeros(3, 2, 16, 8, device=DEVICE)
    angles = random(5, 4)
    gpu.attention(random(1, 8 * 8), angles.cos(), angles.sin(), k, k, batch, 1.0, None)
    batch = replace(batch, query_starts=torch.tensor([0, 1], dtype=torch.int32, device=DEVICE))
    gpu.attention(random(1, 8 * 8), angles.cos(), angles.sin(), k, k, batch, 1.0, None)
    assert not k.any()


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


def test_shares_of_the_context_depend_on_the_token_count_alone():
    assert [gpu_attention.num_splits_for(t, 8) for t in (1, 8, 16, 32, 256)] == [16, 16, 8, 4, 1]


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 4, 5, 16, 33, 64, 100])
@pytest.mark.parametrize("mode", FfnMode)
def test_ffn_at_7b(num_tokens, mode):
    check_ffn(num_tokens, 4096, 14336, Activation.DRELU, mode, 0.1, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 16, 17, 64, 300])
def test_predict_at_7b(num_tokens):
    dtype = torch.bfloat16
    residual = random(num_tokens, 4096, dtype=dtype)
    fc1, fc2 = (
        random(1260, 4096, seed=1, dtype=dtype) / 64,
        random(14336, 1260, seed=2, dtype=dtype),
    )
    scores = (residual.double() @ fc1.double().T).relu() @ fc2.double().T
    clear = scores.abs() > 1e-2 * scores.abs().mean()
    assert (gpu.predict(residual, fc1, fc2, 0.0) == (scores > 0))[clear].all()
    assert clear.float().mean() > 0.98


@gpu_only
@pytest.mark.parametrize(
    "lengths", [[1], [513], [100, 4097, 16, 700], [300 + i for i in range(64)]]
)
@pytest.mark.parametrize("window", [None, 128])
def test_attention_at_7b(lengths, window):
    check_attention(lengths, 32, 8, 128, window, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("window", [None, 128, 1000])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(32, 8, 128), (32, 32, 96), (14, 2, 64), (36, 36, 80)]
)
def test_pieces_of_prompts_at_7b(heads, kv_heads, dim, window):
    lens = [(513, 513), (1, 4097), (1000, 3000), (128, 128), (1, 1), (2, 700)]
    for dtype in (torch.bfloat16, torch.float16):
        check_prefill(lens, heads, kv_heads, dim, window, dtype)


@gpu_only
def test_pieces_of_prompts_in_fp32():
    check_prefill([(513, 513), (1, 700), (100, 300)], 32, 8, 128, None)


@gpu_only
@pytest.mark.parametrize("window", [None, 300])
def test_the_same_bits_in_any_chunking_and_company(window):
    """Only on a GPU: the interpreter's products are numpy's, which depend on a row's place."""
    tokens, chunks, heads, kv_heads, dim, page_size = 1500, (512, 1, 700, 287), 32, 8, 128, 16
    num_pages, dtype = 3 * -(-tokens // page_size), torch.bfloat16
    shape = (num_pages, kv_heads, page_size, dim)
    k, v = random(*shape, seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype)
    q, strange = (random(tokens, heads, dim, seed=seed, dtype=dtype) for seed in (3, 4))
    whole = batch_of([(tokens, tokens)], page_size, num_pages)
    want = attend_prompts(q, k, v, whole, dim**-0.5, window)
    end = 0
    for chunk in chunks:
        start, end = end, end + chunk
        batch = batch_of([(3, 3), (chunk, end), (2, tokens)], page_size, num_pages)
        batch.page_tables[1] = whole.page_tables[0]
        queries = torch.cat((strange[:3], q[start:end], strange[:2]))
        got = attend_prompts(queries, k, v, batch, dim**-0.5, window)
        assert torch.equal(got[3 : 3 + chunk], want[start:end])


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


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 16, 17])
@pytest.mark.parametrize(("width", "rows"), [(4096, 6144), (14336, 4096), (1280, 14336)])
def test_products_at_7b(num_tokens, width, rows):
    check_products(num_tokens, width, rows, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 40, 100])
@pytest.mark.parametrize("mode", [FfnMode.UNION, FfnMode.DENSE])
def test_the_ffn_between_norm_and_residual_at_7b(num_tokens, mode):
    for masked in (True, False):
        check_ffn_add(num_tokens, 4096, 14336, mode, masked, torch.bfloat16)


@gpu_only
@pytest.mark.parametrize("num_tokens", [1, 2, 33, 200])
@pytest.mark.parametrize("mode", [FfnMode.TOKEN, FfnMode.DENSE])
def test_experts_at_7b(num_tokens, mode):
    check_experts(num_tokens, 4096, 3584, 1024, mode, torch.bfloat16, num_experts=8)
