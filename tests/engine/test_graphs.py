"""Every decode step finds the graph that was captured for it, and the graph says the same."""

from dataclasses import replace
from types import SimpleNamespace

import published
import pytest
import torch
from scripted import run, submit

from turbosparse.engine import graphs as graphs_module
from turbosparse.engine.config import EngineConfig
from turbosparse.engine.core import EngineCore
from turbosparse.engine.graphs import PIECES, SIZES, StepGraphs, graph_key
from turbosparse.engine.pages import PagePool
from turbosparse.engine.request import PageChoice
from turbosparse.engine.runner import build_runner
from turbosparse.engine.scheduler import Scheduler
from turbosparse.models import calibration
from turbosparse.models.batch import FfnMode, ForwardBatch
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.models.tools import shapes

POLICY = FfnPolicy((4, 64, 512), (FfnMode.TOKEN, FfnMode.UNION, FfnMode.DENSE))


@pytest.mark.parametrize("max_tokens", [1, 3, 64, 200, 256, 1000])
def test_every_decode_size_up_to_the_limit_finds_its_graph(max_tokens):
    """Capture asks for the keys of 1 ... max; a step's own key must be among them."""
    captured = {graph_key(n, max_tokens, POLICY) for n in range(1, max_tokens + 1)} - {None}
    for num_tokens in range(1, min(max_tokens, SIZES[-1]) + 1):
        key = graph_key(num_tokens, max_tokens, POLICY)
        assert key in captured
        assert key.num_tokens >= num_tokens
        assert key.ffn_mode is POLICY.mode_for(key.num_tokens), "chosen by the padded count"
    assert graph_key(max_tokens + 1, max_tokens, POLICY) is None


def test_padding_is_none_up_to_eight_and_never_more_than_a_quarter():
    padded = {n: graph_key(n, SIZES[-1], POLICY).num_tokens for n in range(1, SIZES[-1] + 1)}
    assert all(padded[n] == n for n in range(1, 9))
    assert all(size <= 1.25 * n for n, size in padded.items())


@pytest.mark.parametrize("max_tokens", [1, 20, 512, 2048])
def test_every_step_with_pieces_up_to_the_limit_finds_its_graph(max_tokens):
    captured = {
        graph_key(n, max_tokens, POLICY, holds_pieces=True) for n in range(1, max_tokens + 1)
    } - {None}
    assert captured.isdisjoint({graph_key(n, 256, POLICY) for n in range(1, 257)})
    for num_tokens in range(1, min(max_tokens, PIECES[-1]) + 1):
        key = graph_key(num_tokens, max_tokens, POLICY, holds_pieces=True)
        assert key in captured
        assert 0 <= key.num_tokens - num_tokens < 64, "what stands for no token is computed too"
    assert graph_key(max_tokens + 1, max_tokens, POLICY, holds_pieces=True) is None


def test_a_step_with_pieces_is_padded_by_one_request_more():
    decoder = SimpleNamespace(embedding=torch.zeros(7, 2), config=SimpleNamespace(vocab_size=7))
    sizes = {"max_tokens": 4, "max_pages": 3, "max_piece_tokens": 64}
    graphs = StepGraphs(decoder, [SimpleNamespace(summary=None)], POLICY, **sizes)
    replayed: list[ForwardBatch] = []
    key = graph_key(19, 64, POLICY, holds_pieces=True)
    graph = SimpleNamespace(replay=lambda: replayed.append(graphs._batch(key)))
    graphs.graphs[key] = graph, torch.arange(28.0).view(4, 7)
    graphs._sample_at.fill_(30)  # of an earlier, larger step
    batch = ForwardBatch(
        token_ids=torch.arange(19) % 7,
        positions=torch.arange(19),
        slots=torch.arange(19) + 5,
        request_ids=torch.zeros(19, dtype=torch.int64),
        page_tables=torch.tensor([[2, 5], [1, 0]], dtype=torch.int32),
        query_lens=(18, 1),
        context_lens=(18, 19),
        sample_at=torch.tensor([17]),
        ffn_mode=FfnMode.UNION,
        query_starts=torch.tensor([0, 18, 19], dtype=torch.int32),
    )
    logits = graphs.run(batch)
    assert logits is not None
    assert logits.tolist() == [list(range(7))]
    (ran,) = replayed
    assert ran.query_starts.tolist() == [0, 18, 19, 32, 32, 32]
    assert ran.sample_at.tolist() == [17, 0, 0, 0]
    assert ran.positions.tolist() == [*range(19), *[0] * 13]
    assert ran.slots.tolist() == [*range(5, 24), *[-1] * 13]
    assert ran.token_ids[:19].tolist() == batch.token_ids.tolist()
    assert ran.page_tables[:2, :2].tolist() == batch.page_tables.tolist()
    assert len(ran.page_tables) == 5, "the padding's own row"
    crowd = replace(batch, page_tables=torch.zeros(5, 2, dtype=torch.int32))
    assert graphs.run(crowd) is None, "more requests than rows"
    long = replace(batch, token_ids=torch.zeros(65, dtype=torch.int64))
    assert graphs.run(long) is None


def test_of_a_step_of_single_tokens_those_to_sample_are_told():
    """A prompt's piece may be one token long, and not its last."""
    decoder = SimpleNamespace(embedding=torch.zeros(7, 2), config=SimpleNamespace(vocab_size=7))
    caches = [SimpleNamespace(summary=None)]
    graphs = StepGraphs(decoder, caches, POLICY, max_tokens=4, max_pages=3)
    graph = SimpleNamespace(replay=lambda: None)
    graphs.graphs[graph_key(3, 4, POLICY)] = graph, torch.arange(28.0).view(4, 7)
    ones = torch.ones(3, dtype=torch.int64)
    batch = ForwardBatch(
        token_ids=ones,
        positions=ones,
        slots=ones,
        request_ids=torch.arange(3),
        page_tables=torch.zeros(3, 2, dtype=torch.int32),
        query_lens=(1, 1, 1),
        context_lens=(2, 2, 2),
        sample_at=torch.tensor([0, 2]),
        ffn_mode=FfnMode.UNION,
    )
    every = torch.arange(21.0).view(3, 7)
    assert torch.equal(graphs.run(batch), every[[0, 2]])
    assert torch.equal(graphs.run(replace(batch, sample_at=torch.arange(3))), every)
    assert torch.equal(graphs.run(replace(batch, sample_at=None)), every)


def test_every_size_is_captured_and_large_ones_share_their_logits(monkeypatch):
    """Without a GPU: what would be captured is called."""

    class Decoder:
        embedding, config = torch.zeros(7, 2), SimpleNamespace(vocab_size=7)

        def __call__(self, batch, caches):
            assert (batch.slots == -1).all(), "warming up writes no page"
            rows = batch.token_ids if batch.sample_at is None else batch.sample_at
            return torch.full((len(rows), 7), float(len(batch.token_ids)))

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(graphs_module, "captured", lambda run, pool: (None, run()))
    sizes = {"max_tokens": 12, "max_pages": 3, "max_piece_tokens": 40}
    graphs = StepGraphs(Decoder(), [SimpleNamespace(summary=None)], POLICY, **sizes)
    graphs.capture()
    decodes = {n: graph_key(n, 12, POLICY) for n in (*range(1, 9), 10, 12)}
    pieces = {graph_key(n, 40, POLICY, holds_pieces=True) for n in range(1, 41)}
    assert set(graphs.graphs) == {*decodes.values(), *pieces}
    assert all(len(graphs.graphs[key][1]) == n for n, key in decodes.items())
    assert all(len(graphs.graphs[key][1]) == 12 for key in pieces), "as many as requests"
    shared = {graphs.graphs[key][1].data_ptr() for key in (decodes[10], decodes[12], *pieces)}
    assert shared == {graphs._logits.data_ptr()}
    own = {graphs.graphs[decodes[n]][1].data_ptr() for n in range(1, 9)} - shared
    assert len(own) == 8, "what a few tokens are sampled from is copied nowhere"


def texts(
    directory,
    *,
    graphs: bool,
    overlap: bool,
    dtype: str = "auto",
    pages: PageChoice | None = None,
) -> dict[str, list[int]]:
    """Greedy and seeded texts of requests that come and go, so that every size is met; every third
    one has `pages`."""
    config = EngineConfig(
        model=str(directory),
        device="cuda",
        dtype=dtype,
        num_pages=300,
        page_size=4,
        max_num_seqs=13,
        page_budget=None if pages is None else pages.budget,
        attention_from=None if pages is None else 0,
    )
    runner, info = build_runner(config)
    assert runner.graphs is not None
    ran: set[tuple[bool, bool]] = set()  # a step with pieces of prompts, in a graph
    if graphs:
        captured = runner.graphs.run

        def run_graph(batch):
            logits = captured(batch)
            ran.add((batch.query_starts is not None, logits is not None))
            return logits

        runner.graphs.run = run_graph
    else:
        runner.graphs = None
    pool = PagePool(300, 4)
    scheduler = Scheduler(
        pool, max_num_seqs=13, max_num_batched_tokens=64, max_model_len=info.max_model_len
    )
    core = EngineCore(runner, scheduler, info.eos_token_ids, overlap=overlap)
    generator = torch.Generator().manual_seed(3)
    for i in range(20):
        prompt = torch.randint(0, 97, (3 + i,), generator=generator).tolist()
        temperature = 0.0 if i % 2 else 0.8
        core.add(
            submit(
                f"{i}",
                prompt,
                5 + i,
                temperature=temperature,
                seed=i,
                top_p=0.9,
                ignore_eos=True,
                pages=None if i % 3 else pages,
            )
        )
    found = run(core).tokens
    if graphs and pages is None:
        assert ran == {(True, True), (False, True)}
    return found


def decodes(num_tokens: int) -> ForwardBatch:
    """A step of so many requests, of 20 tokens and more, on pages of 4."""
    requests = torch.arange(num_tokens, device="cuda")
    positions = 20 + requests
    tables = torch.arange(num_tokens * 16, device="cuda", dtype=torch.int32).view(num_tokens, 16)
    pages = tables[requests, positions // 4].long()
    return ForwardBatch(
        token_ids=3 * requests,
        positions=positions,
        slots=4 * pages + positions % 4,
        request_ids=requests,
        page_tables=tables,
        query_lens=(1,) * num_tokens,
        context_lens=tuple(21 + i for i in range(num_tokens)),
        sample_at=None,
        ffn_mode=FfnMode.UNION,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["turbosparse-mistral", "turbosparse-mixtral", "mixtral"])
def test_a_graphs_logits_are_those_of_the_step(tmp_path, name, monkeypatch):
    """In bfloat16 up to its rounding, which decides between tokens of a vocabulary so random."""
    policy = FfnPolicy.always(FfnMode.UNION)
    monkeypatch.setattr(calibration, "calibrate", lambda *args, **options: policy)
    directory = published.make(tmp_path, name, intermediate_size=96)
    config = EngineConfig(
        model=str(directory), device="cuda", dtype="bfloat16", num_pages=600, page_size=4,
        max_num_seqs=32,
    )  # fmt: skip
    runner, _ = build_runner(config)
    assert runner.graphs is not None
    generator = torch.Generator("cuda").manual_seed(1)
    for cache in runner.caches:
        for part in (cache.k, cache.v):
            part.normal_(generator=generator)
    with torch.inference_mode():
        for num_tokens in range(1, 33):
            batch = decodes(num_tokens)
            want = runner.decoder(batch, runner.caches)
            got = runner.graphs.run(batch)
            assert got is not None
            far = (got - want).abs().max() / want.abs().max()
            assert far < 2**-5, num_tokens
            if graph_key(num_tokens, 32, policy).num_tokens == num_tokens:
                assert torch.equal(got, want), f"{num_tokens} tokens, {far:.1e} apart"


def check_texts(directory, dtype="auto"):
    with torch.inference_mode():
        eager = texts(directory, graphs=False, overlap=False, dtype=dtype)
        assert texts(directory, graphs=True, overlap=False, dtype=dtype) == eager
        assert texts(directory, graphs=True, overlap=True, dtype=dtype) == eager


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["turbosparse-mistral", "bamboo"])
def test_graphs_change_no_token(tmp_path, name):
    check_texts(published.make(tmp_path, name))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "dtype", "mode"),
    [
        ("turbosparse-mixtral", "float32", FfnMode.UNION),
        ("turbosparse-mixtral", "float32", FfnMode.DENSE),
        ("mixtral", "float32", FfnMode.DENSE),
        ("mixtral", "float16", FfnMode.DENSE),
    ],
)
def test_graphs_change_no_token_of_experts(tmp_path, name, dtype, mode, monkeypatch):
    policy = FfnPolicy.always(mode)
    monkeypatch.setattr(calibration, "calibrate", lambda *args, **options: policy)
    check_texts(published.make(tmp_path, name, intermediate_size=96), dtype)


@pytest.mark.gpu
def test_graphs_change_no_token_of_sparse_attention(tmp_path):
    directory, pages = published.make(tmp_path, "bamboo"), PageChoice(16)
    with torch.inference_mode():
        full = texts(directory, graphs=False, overlap=False)
        eager = texts(directory, graphs=False, overlap=False, pages=pages)
        assert eager != full
        for overlap in (False, True):
            assert texts(directory, graphs=True, overlap=overlap, pages=pages) == eager


def test_steps_with_and_without_page_budgets_are_graphs_of_their_own():
    assert graph_key(9, 64, POLICY) != graph_key(9, 64, POLICY, True)
    assert graph_key(9, 64, POLICY, True).num_tokens == 10


@pytest.mark.gpu
def test_a_7b_with_its_graphs_takes_little_beside_its_weights(tmp_path):
    """The sparse path and the dense one read the same weights: no second copy of any."""
    before = torch.cuda.memory_allocated()
    shapes.describe_named(tmp_path, "turbosparse-mistral-7b")
    runner, _ = build_runner(EngineConfig(model=str(tmp_path), device="cuda", num_pages=600))
    weights = sum(p.numel() * p.element_size() for p in runner.decoder.parameters())
    kv = sum(cache.k.nbytes + cache.v.nbytes for cache in runner.caches)
    assert torch.cuda.memory_allocated() - before <= 1.05 * weights + kv
