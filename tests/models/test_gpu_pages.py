"""The Triton kernels of page selection against the reference."""

from dataclasses import replace
from itertools import chain

import pytest
import torch
from on_gpu import DEVICE, close, gpu_only, random
from test_gpu_attention import batch_of

from turbosparse.models.batch import ForwardBatch, PageBudgets
from turbosparse.models.config import PAGE_SIZES
from turbosparse.models.kernels import (
    gpu,
    gpu_attention,
    gpu_chosen,
    gpu_gates,
    gpu_keep,
    gpu_launch,
    gpu_pages,
    reference,
    reference_pages,
)


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch):
    """Interpreted, a program takes some ten milliseconds; on a GPU as many as there are."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(gpu_attention, "TARGET_PROGRAMS", 16)
        monkeypatch.setattr(gpu_attention, "AT_ONCE", 16)


def budgets_of(pages: list[int], share=1.0, gated=0.0) -> PageBudgets:
    each = torch.tensor(pages, dtype=torch.int32, device=DEVICE)
    like = torch.zeros(len(pages), device=DEVICE)
    return PageBudgets(
        each,
        like + share,
        like + gated,
        tokens=each.nonzero()[:, 0],
        read=torch.zeros_like(like),
    )


class Case:
    """One layer's tensors for requests of `lens`: their new tokens, and all with them."""

    def __init__(self, lens, heads, kv_heads, dim, page_size=16, dtype=torch.float32):
        num_pages = len(lens) * -(-max(total for _, total in lens) // page_size) + 2
        self.batch = batch_of(lens, page_size, num_pages)
        shape = (num_pages, kv_heads, page_size, dim)
        self.k, self.v = random(*shape, seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype)
        self.summary = torch.full((num_pages, kv_heads, 2, dim), 9.0, dtype=dtype, device=DEVICE)
        every = torch.arange(num_pages * page_size, device=DEVICE)
        reference_pages.summarize(self.k, self.summary, every)
        width = (heads + 2 * kv_heads) * dim
        self.qkv = random(len(self.batch.positions), width, seed=3, dtype=dtype)
        angles = random(max(total for _, total in lens), dim // 2, seed=4)
        self.rope = angles.cos(), angles.sin()
        rank, self.scale, self.page_size = 8, dim**-0.5, page_size
        query = random(heads, rank, 2 * dim, seed=5, dtype=dtype) / (2 * dim) ** 0.5
        self.gate = query, random(kv_heads, 2 * dim, rank, seed=6, dtype=dtype) / rank**0.5

    def run(self, backend, budgets, window=None, gate=None):
        caches = [x.clone() for x in (self.k, self.v, self.summary)]
        batch = replace(self.batch, budgets=budgets)
        rest = (*caches, gate, batch, self.scale, window)
        return backend.sparse_attention(self.qkv, *self.rope, *rest), *caches

    def chosen(self, budgets, window=None, gate=None) -> tuple[list, list]:
        """What each token reads, by the reference and by the kernels."""
        caches = [x.clone() for x in (self.k, self.v)]
        batch: ForwardBatch = self.batch
        q = reference.rotate_and_store(self.qkv, *self.rope, *caches, batch)
        summary, places = self.summary.clone(), (batch.positions, batch.slots, batch.request_ids)
        reference_pages.summarize(caches[0], summary, batch.slots)
        rest = (batch, budgets, self.page_size, self.scale, window)
        want = reference_pages.choose(q, summary, gate, *rest)
        rotary, learned = (self.qkv, *self.rope), None
        if gate is not None:
            learned = gpu_gates.learned(*rotary, batch.positions, gate, budgets.gated)
            close(learned, reference_pages.learned(q, gate, budgets.gated))
        places = (batch.positions, batch.slots, batch.request_ids, batch.page_tables)
        before = [x.clone() for x in (self.k, self.v, self.summary)]
        arguments = (*rotary, learned, *before, *places, budgets)
        got = lists(*gpu_pages.choose(*arguments, self.scale, window))
        tables = batch.page_tables[batch.request_ids].tolist()
        for table, heads in zip(tables, got, strict=True):
            heads[:] = [[table.index(page) for page in pages] for pages in heads]
        return lists(*want), got


def lists(columns: torch.Tensor, counts: torch.Tensor) -> list[list[list[int]]]:
    tokens = zip(columns.tolist(), counts.tolist(), strict=True)
    return [[row[:n] for row, n in zip(*token, strict=True)] for token in tokens]


def same(case: Case, budgets, window=None, gate=None) -> None:
    want, got = case.chosen(budgets, window, gate)
    assert got == want
    results = {}
    for backend in (reference, gpu):
        read = replace(budgets, read=torch.zeros_like(budgets.shares))
        results[backend] = (*case.run(backend, read, window, gate), read.read)
    for one, other in zip(results[gpu], results[reference], strict=True):
        close(one, other)


DECODES = [(1, 1), (1, 16), (1, 150), (1, 95)]
MIXED = [(9, 9), (1, 90), (17, 41), (1, 1)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "share", "window"),
    [(6, 2, 16, 1.0, None), (3, 1, 16, 0.7, None), (1, 1, 16, 1.0, 70)],
)
def test_decoding_tokens_choose_and_read_the_same(heads, kv_heads, dim, share, window):
    case = Case(DECODES, heads, kv_heads, dim, page_size=8)
    budgets = budgets_of([4, 0, 6, 5], share)
    same(case, budgets, window)


def test_nothing_is_asked_for_early_where_programs_wait_for_one_another(monkeypatch):
    monkeypatch.setattr(gpu_launch, "multiprocessors", lambda _: 0)
    case = Case(DECODES, 2, 1, 16, page_size=8)
    same(case, budgets_of([4, 0, 6, 5], gated=1.0), None, case.gate)


def test_a_gate_has_its_part_in_the_choice():
    case = Case(DECODES, 6, 2, 24, page_size=8)
    budgets = budgets_of([5, 0, 5, 5], gated=1.0)
    budgets.gated[3] = 0  # beside one that takes the bound alone
    same(case, budgets, None, case.gate)
    with_gate, without = case.chosen(budgets, None, case.gate)[1], case.chosen(budgets)[1]
    assert [a == b for a, b in zip(with_gate, without, strict=True)] == [True, True, False, True]


def test_tokens_with_budgets_among_pieces_of_prompts():
    case = Case(MIXED, 2, 1, 16, page_size=8)
    same(case, budgets_of([0] * 9 + [5] + [0] * 12 + [4] * 5 + [4], 0.9))


def test_many_pages_for_many_programs():
    """More pages than one program takes at a time, on a table that is no power of two."""
    case = Case([(1, 700), (1, 1)], 2, 1, 16, page_size=4)
    assert gpu_pages._shares(2, 1, 256)[0] > 1
    for budget in (50, 160):
        same(case, budgets_of([budget, 4]))


def test_pages_of_the_largest_size():
    case = Case([(9, 9), (1, 2600), (2, 2100)], 2, 1, 16, page_size=PAGE_SIZES[-1])
    same(case, budgets_of([0] * 9 + [4, 0, 4]))


def test_equal_pages_are_taken_in_order():
    case = Case([(1, 320)], 2, 1, 16)
    case.summary.fill_(0.5)
    want, got = case.chosen(budgets_of([8]))
    assert got == want == [[[0, 1, 2, 3, 4, 5, 18, 19]]]


ESTIMATES = {
    "all equal": torch.zeros(300),
    "one has everything, of the others nothing is left": torch.where(
        torch.arange(300) == 77, 400.0, 0.0
    ),
    "few kinds": (torch.arange(300) % 5).float(),
    "far apart": random(300, seed=1).cpu() * 20,  # but none so small that a GPU takes it for zero
    "close together": random(300, seed=2).cpu() * 1e-3,
    "a step in the midst": torch.where(torch.arange(300) < 40, 3.0, -3.0),
}


@pytest.mark.parametrize("scores", ESTIMATES.values(), ids=ESTIMATES)
@pytest.mark.parametrize("share", [1.0, 0.597])  # not just where a page ends
def test_the_choice_among_awkward_estimates(scores, share):
    """In powers of two, of one head; the page that is being filled comes after them."""
    own, page_size = len(scores), 16
    table = torch.randperm(own + 1, generator=torch.Generator().manual_seed(0)).int()
    padded = torch.full((1, 1, 1, 512), torch.nan)
    padded[..., :own] = scores
    peak = scores.max()
    sums = torch.stack((peak, (scores - peak).exp2().sum())).view(1, 1, 1, 1, 2)
    places = (torch.tensor([own * page_size]), torch.tensor([0]), table[None])
    arguments = [x.to(DEVICE) for x in (padded, sums, *places)]
    for budget in (4, 43, 44, own, own + 1, own + 9):
        budgets = budgets_of([budget], share)
        got = lists(*gpu_keep.keep(*arguments, budgets, page_size, None))[0][0]
        mass = (scores - peak).exp2() / sums[..., 1].item()
        kept = reference_pages.keep(mass[None], budget, share)[0].nonzero()[:, 0]
        assert got == [*table[kept].tolist(), table[own].item()]


@pytest.mark.parametrize("is_early", [True, False])
def test_steps_without_budgets_write_summaries_too(monkeypatch, is_early):
    if not is_early:
        monkeypatch.setattr(gpu_launch, "multiprocessors", lambda _: 0)
    for lens in (DECODES, MIXED):
        case = Case(lens, 4, 2, 16)
        for got, want in zip(case.run(gpu, None), case.run(reference, None), strict=True):
            close(got, want)


def test_a_token_that_is_not_there_writes_no_summary():
    case = Case([(1, 16)], 2, 1, 16)
    case.batch.slots.fill_(-1)
    for budgets in (None, budgets_of([4])):
        *_, k, _, summary = case.run(gpu, budgets)
        assert torch.equal(k, case.k)
        assert torch.equal(summary, case.summary)


@gpu_only
@pytest.mark.parametrize("window", [None, 3000])
@pytest.mark.parametrize(
    "lens", [[(1, 32768)], [(1, 5000 + 97 * i) for i in range(16)], [(1, 400), (1, 8191)]]
)
def test_choosing_at_7b(lens, window):
    """Among so many pages the last bits of two estimates may well decide between them."""
    case = Case(lens, 32, 8, 128)
    budgets = budgets_of([(128, 0, 64)[i % 3] for i in range(len(lens))])
    for share in (1.0, 0.8):
        given = replace(budgets, shares=budgets.shares * share)
        want, got = case.chosen(given, window)
        num_wanted = num_common = 0
        for one, other in zip(chain(*want), chain(*got), strict=True):
            assert abs(len(one) - len(other)) <= (share < 1)
            assert {*one[:1], *one[-2:]} == {*other[:1], *other[-2:]}
            assert other == sorted(set(other))
            num_wanted += len(one)
            num_common += len({*one} & {*other})
        assert num_common >= 0.998 * num_wanted


@gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_what_was_chosen_at_7b(dtype):
    case = Case([(1, 32768), (1, 700), (1, 9000), (1, 31)], 32, 8, 128, dtype=dtype)
    batch, caches = case.batch, (case.k, case.v)
    q = reference.rotate_and_store(case.qkv, *case.rope, *caches, batch)
    columns = torch.stack([torch.randperm(43)[:39].sort().values for _ in range(4 * 8)])
    own = (batch.positions // case.page_size).cpu()[:, None, None].expand(4, 8, 1)
    columns = torch.cat((columns.view(4, 8, 39), own), 2).int().to(DEVICE)
    columns[3] = 1  # its own page alone
    counts = torch.tensor([40, 40, 0, 1], dtype=torch.int32, device=DEVICE)[:, None].repeat(1, 8)
    budgets = torch.tensor([64, 40, 0, 4], dtype=torch.int32, device=DEVICE)
    want = reference.attend(q, *caches, batch, case.scale, None)
    rest = (columns, counts, batch, case.scale, None)
    reference_pages.attend_chosen(q, *caches, *rest, want.view(q.shape))
    own_tables = batch.page_tables[batch.request_ids][:, None].expand(-1, 8, -1)
    pages = own_tables.gather(2, columns.long())
    places = (batch.positions, batch.request_ids, batch.page_tables, budgets, pages, counts)
    close(gpu_chosen.attend(case.qkv, *case.rope, *caches, *places, case.scale, None), want)


@gpu_only
def test_a_budget_of_all_pages_is_full_attention_at_7b():
    lens = [(1, 32768), (1, 100), (1, 9000)]
    case = Case(lens, 32, 8, 128, dtype=torch.bfloat16)
    everything = case.run(gpu, None)[0]
    close(case.run(gpu, budgets_of([2048] * 3))[0], everything)
    close(case.run(gpu, budgets_of([0] * 3))[0], everything)


@gpu_only
def test_the_same_pages_and_bits_every_time():
    case = Case([(1, 20000 + i) for i in range(8)], 32, 8, 128, dtype=torch.bfloat16)
    budgets = budgets_of([128] * 8)
    first = case.run(gpu, budgets)[0]
    for _ in range(5):
        assert torch.equal(case.run(gpu, budgets)[0], first)
