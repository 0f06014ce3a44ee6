"""The Triton kernels of attention against the reference."""

from dataclasses import replace

import pytest
import torch
from on_gpu import DEVICE, close, gpu_only, random

from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.kernels import gpu, gpu_attention, gpu_prefill, reference


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


@pytest.mark.parametrize(
    ("lengths", "heads", "kv_heads", "dim", "window"),
    [
        ([1, 17, 150], 6, 2, 16, None),
        ([1, 150], 6, 2, 16, 20),
        ([17, 70], 5, 5, 8, None),
    ],
)
@pytest.mark.parametrize("is_early", [True, False])  # all programs run at once
def test_attention(monkeypatch, lengths, heads, kv_heads, dim, window, is_early):
    monkeypatch.setattr(gpu_attention, "run_at_once", lambda *_: is_early)
    check_attention(lengths, heads, kv_heads, dim, window)


def test_many_blocks_of_one_share():
    check_attention([4500], 2, 1, 16, None)
    check_attention([2500], 2, 1, 16, 2200)


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


def test_shares_of_the_context_depend_on_the_token_count_alone():
    assert [gpu_attention.num_splits_for(t, 8) for t in (1, 8, 16, 32, 256)] == [32, 8, 4, 2, 1]
    assert [gpu_attention.num_splits_for(t, 8, 256) for t in (1, 2, 3, 4)] == [32, 16, 8, 8]


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
