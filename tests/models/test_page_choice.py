"""Which pages a token reads: the properties of the choice, and the CPU kernels against it."""

from dataclasses import replace

import pytest
import torch

from turbosparse.models.batch import FfnMode, ForwardBatch, PageBudgets
from turbosparse.models.config import PAGE_SIZES
from turbosparse.models.kernels import cpu, reference, reference_pages

PAGE = 4


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def budgets_of(pages: list[int], share: float = 1.0, gated: float = 0.0) -> PageBudgets:
    return PageBudgets(
        pages=torch.tensor(pages, dtype=torch.int32),
        shares=torch.full((len(pages),), share),
        gated=torch.full((len(pages),), gated),
        read=torch.zeros(len(pages)),
    )


def batch_of(
    lens: list[tuple[int, int]], budgets: PageBudgets | None, page_size: int = PAGE
) -> ForwardBatch:
    """For each request its new tokens and all that it has with them; its pages are scattered."""
    width = max(-(-total // page_size) for _, total in lens)
    order = torch.randperm(len(lens) * width, generator=torch.Generator().manual_seed(0))
    tables = order.view(len(lens), width).int()
    places = [(b, p) for b, (n, total) in enumerate(lens) for p in range(total - n, total)]
    requests, positions = (torch.tensor(column) for column in zip(*places, strict=True))
    return ForwardBatch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        slots=tables[requests, positions // page_size].long() * page_size + positions % page_size,
        request_ids=requests,
        page_tables=tables,
        query_lens=tuple(n for n, _ in lens),
        context_lens=tuple(total for _, total in lens),
        sample_at=None,
        ffn_mode=FfnMode.TOKEN,
        budgets=budgets,
    )


class Case:
    """The tensors of one layer: H heads, K of keys, D dimensions, over scattered pages."""

    def __init__(
        self, lens, budgets, heads=6, kv_heads=2, dim=8, rank=3, window=None, page_size=PAGE
    ):
        self.batch, self.page_size = batch_of(lens, budgets, page_size), page_size
        num_tokens, num_pages = len(self.batch.positions), self.batch.page_tables.numel()
        self.qkv = 3 * random(num_tokens, (heads + 2 * kv_heads) * dim)
        angles = random(max(total for _, total in lens), dim // 2, seed=1)
        self.rope = angles.cos(), angles.sin()
        shape = (num_pages, kv_heads, page_size, dim)
        self.caches = random(*shape, seed=2), random(*shape, seed=3)
        self.summary = torch.full((num_pages, kv_heads, 2, dim), torch.nan)
        earlier = torch.arange(num_pages * page_size)
        reference_pages.summarize(self.caches[0], self.summary, earlier)
        query, key = random(heads, rank, 2 * dim, seed=4), random(kv_heads, 2 * dim, rank, seed=5)
        self.gate = query / (2 * dim) ** 0.5, key / rank**0.5
        self.scale, self.window, self.dim = dim**-0.5, window, dim
        self.heads, self.kv_heads = heads, kv_heads

    def run(self, backend, budgets=None, gate=None):
        """The op on copies of the caches: what it returns, and the caches afterwards."""
        batch = replace(self.batch, budgets=budgets)
        caches = [x.clone() for x in (*self.caches, self.summary)]
        arguments = (self.qkv, *self.rope, *caches, gate, batch, self.scale, self.window)
        return backend.sparse_attention(*arguments), *caches

    def queries(self) -> torch.Tensor:
        caches = [x.clone() for x in self.caches]
        return reference.rotate_and_store(self.qkv, *self.rope, *caches, self.batch)

    def choose(self, backend, budgets, gate=None):
        q = self.queries()
        rest = (self.batch, budgets, self.page_size, self.scale, self.window)
        columns, counts = backend.choose(q, self.summary, gate, *rest)
        return [
            [columns[t, k, : counts[t, k]].tolist() for k in range(self.kv_heads)]
            for t in range(len(q))
        ]


DECODES = [(1, 1), (1, 16), (1, 17), (1, 120), (1, 77), (1, 3), (1, 9)]
MIXED = [(9, 9), (1, 50), (37, 61), (1, 99), (1, 1)]


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("gated", [0.0, 1.0])
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rank"), [(6, 2, 8, 3), (4, 4, 20, 17)])
def test_the_cpu_kernels_choose_and_read_the_same(window, share, gated, heads, kv_heads, dim, rank):
    for lens in (DECODES, MIXED):
        pages = [(0, 4, 6, 9)[i % 4] for i in range(sum(n for n, _ in lens))]
        same(Case(lens, None, heads, kv_heads, dim, rank, window), pages, share, gated)


def same(case: Case, pages: list[int], share: float, gated: float) -> None:
    """The kernels against the reference: what they choose, read and leave in the caches."""
    chosen = case.choose(cpu, budgets_of(pages, share, gated), case.gate)
    assert chosen == case.choose(reference_pages, budgets_of(pages, share, gated), case.gate)
    assert any(len(head) > 3 for token in chosen for head in token)
    seen = {}
    for backend in (cpu, reference):
        read = budgets_of(pages, share, gated)
        seen[backend] = (*case.run(backend, read, case.gate), read.read)
    for got, want in zip(seen[cpu], seen[reference], strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 1300])
@pytest.mark.parametrize("page_size", [32, PAGE_SIZES[-1]])
def test_the_same_in_larger_pages(page_size, window):
    lens = [(1, 1), (1, page_size), (3, page_size + 1), (1, 6 * page_size + 3), (9, 9)]
    pages = [(0, 4, 5)[i % 3] for i in range(sum(n for n, _ in lens))]
    same(Case(lens, None, window=window, page_size=page_size), pages, 1.0, 1.0)


@pytest.mark.parametrize("window", [None, 30])
def test_a_budget_of_all_pages_is_full_attention_to_the_bit(window):
    case = Case(DECODES, None, window=window)
    pages = case.batch.page_tables.shape[1]
    budgets = budgets_of([pages] * len(DECODES))
    for gate in (None, case.gate):
        assert torch.equal(case.run(cpu, budgets, gate)[0], case.run(cpu)[0])
    assert torch.equal(budgets.read, torch.full((len(DECODES),), 2.0)), "all of it, twice"


def test_no_more_pages_than_the_budget_and_always_the_first_and_the_last_two():
    case = Case(DECODES, None)
    for backend in (cpu, reference_pages):
        for budget in (4, 5, 11, 40):
            chosen = case.choose(backend, budgets_of([budget] * len(DECODES)))
            for token, (_, total) in zip(chosen, DECODES, strict=True):
                last = (total - 1) // PAGE
                for columns in token:
                    assert len(columns) == min(budget, last + 1)
                    assert columns == sorted(set(columns))
                    assert {0, max(0, last - 1), last} <= {*columns} <= {*range(last + 1)}


def true_mass(case: Case, t: int) -> torch.Tensor:
    """The attention that each of a token's pages really gets, by K/V head: [K, pages]."""
    batch, (k_cache, _) = case.batch, case.caches
    table = batch.page_tables[batch.request_ids[t]].long()
    keys = k_cache[table].transpose(0, 1).flatten(1, 2)[:, : batch.positions[t] + 1]
    q = case.queries()[t].view(case.kv_heads, -1, case.dim)
    weights = (q @ keys.mT * case.scale).softmax(-1).mean(1)
    missing = -weights.shape[1] % PAGE
    return torch.nn.functional.pad(weights, (0, missing)).view(case.kv_heads, -1, PAGE).sum(-1)


def recalled(case: Case, t: int, budgets: PageBudgets) -> list[float]:
    mass = true_mass(case, t)
    chosen = case.choose(cpu, budgets)[t]
    return [mass[k, columns].sum().item() for k, columns in enumerate(chosen)]


def test_a_larger_budget_reads_what_a_smaller_one_does_and_recalls_no_less():
    case, t = Case(DECODES, None), 3
    smaller: list[set[int]] = [set(), set()]
    least = [0.0, 0.0]
    for budget in range(4, 31):
        budgets = budgets_of([budget] * len(DECODES))
        chosen = [set(columns) for columns in case.choose(cpu, budgets)[t]]
        mass = recalled(case, t, budgets)
        assert all(a <= b for a, b in zip(smaller, chosen, strict=True))
        assert all(a <= b + 1e-6 for a, b in zip(least, mass, strict=True))
        smaller, least = chosen, mass
    assert least == pytest.approx([1.0, 1.0])


def test_the_bound_recalls_more_than_a_choice_blind_to_the_query():
    """On random keys the bound is loose, and still it beats the same number of recent pages."""
    case, t = Case([(1, 120)], None, heads=2, kv_heads=1, dim=16), 0
    mass = true_mass(case, t)[0]
    recent = mass[0] + mass[-9:].sum()
    assert recalled(case, t, budgets_of([10]))[0] > 1.5 * recent


def test_no_key_of_a_page_scores_above_its_bound():
    case = Case([(1, 120)], None)
    q, (k_cache, _) = case.queries(), case.caches
    probes = reference_pages.probe(q, None, torch.zeros(1))[0].view(2, 3, -1)
    bound = torch.einsum("kgf,pkf->pkg", probes, case.summary.flatten(2))
    scores = torch.einsum("kgd,pkod->pkgo", q[0].view(2, 3, -1), k_cache)
    assert (scores.amax(-1) <= bound + 1e-5).all()


def test_a_share_of_the_mass_takes_as_many_pages_as_reach_it():
    mass = torch.tensor([[0.1, 0.05, 0.4, 0.2, 0.2, 0.05]])
    for share, budget, want in (
        (1.0, 7, [0, 1, 2, 3, 4, 5]),
        (1.0, 4, [0, 2, 5]),
        (0.1, 7, [0, 5]),  # what is always read is enough
        (0.5, 7, [0, 2, 5]),
        (0.6, 7, [0, 2, 3, 4, 5]),  # who is as large as the last one is kept too
        (0.6, 5, [0, 2, 3, 5]),  # within the budget, the earlier first
    ):
        kept = reference_pages.keep(mass, budget, share)[0].nonzero().flatten().tolist()
        assert kept == want, (share, budget)
        columns = torch.zeros(7, dtype=torch.int32)
        count = cpu.cpu_pages._keep(mass[0].numpy(), budget, share, 10, columns.numpy())
        assert columns[:count].tolist() == [10 + p for p in [*want, 6]], (share, budget)


def test_equal_pages_are_taken_in_order():
    case = Case([(1, 120)], None)
    case.summary.fill_(0.5)
    for backend in (cpu, reference_pages):
        for columns in case.choose(backend, budgets_of([8]))[0]:
            assert columns == [0, 1, 2, 3, 4, 5, 28, 29]


def test_a_token_does_not_depend_on_its_company():
    """Bit for bit: a request alone, and the same among others and in pieces of any size."""
    case = Case(MIXED, None)
    pages = [0] * 9 + [6] * 38 + [5, 0]
    budgets = budgets_of(pages, gated=1.0)
    together = case.run(cpu, budgets, case.gate)[0]
    alone = replace(case.batch, budgets=None)
    for t in (9, 10, 25, 46, 47):
        one = slice(t, t + 1)
        batch = replace(
            alone,
            positions=alone.positions[one],
            slots=alone.slots[one],
            request_ids=alone.request_ids[one],
            budgets=budgets_of(pages[one], gated=1.0),
        )
        caches = [x.clone() for x in case.run(cpu, budgets, case.gate)[1:]]
        arguments = (case.qkv[one], *case.rope, *caches, case.gate, batch, case.scale, None)
        assert torch.equal(cpu.sparse_attention(*arguments)[0], together[t])


def test_summaries_are_of_filled_pages_alone():
    case = Case([(3, 7), (1, 12), (5, 6)], None)
    stale = torch.full_like(case.summary, 7.0)
    for backend in (cpu, reference):
        case.summary = stale
        _, k_cache, _, summary = case.run(backend)
        filled = case.batch.page_tables[1, 2], case.batch.page_tables[2, 0]
        for page in range(len(summary)):
            want = stale[page]
            if page in filled:
                want = torch.stack((k_cache[page].amin(1), k_cache[page].amax(1)), 1)
            torch.testing.assert_close(summary[page], want)
