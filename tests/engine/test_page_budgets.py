"""Sparse attention through the whole engine: by request, and independent of circumstances."""

import published
import pytest
from scripted import run
from test_runner import BOTH, PROMPT, greedy, make, others

from turbosparse.engine.attention import DEFAULT_BUDGET, describe
from turbosparse.engine.config import EngineConfig
from turbosparse.engine.pages import PagePool
from turbosparse.engine.request import PageChoice, Request, SamplingParams
from turbosparse.engine.runner import build_runner
from turbosparse.engine.scheduler import Scheduler
from turbosparse.models.config import PAGE_SIZES, ModelError
from turbosparse.models.sparsity.blocks import MIN_BUDGET

LEAST = PageChoice(16)  # four pages of 4: the first, the last two and one to choose
LENGTH = 60


@pytest.fixture(scope="module", params=["turbosparse-mistral", "bamboo"])
def directory(request, tmp_path_factory):
    return published.make(tmp_path_factory.mktemp("model"), request.param, sliding_window=None)


def make_sparse(directory, **options):
    return make(directory, **{"page_budget": 16} | options)


def tokens_of(core, name="a", **sampling):
    core.add(greedy(name, PROMPT, LENGTH, **sampling))
    return run(core).tokens[name]


@pytest.fixture(scope="module")
def full(directory):
    return tokens_of(make(directory))


@pytest.fixture(scope="module")
def sparse(directory, full):
    tokens = tokens_of(make_sparse(directory), pages=LEAST)
    assert tokens != full, "the budget leaves nothing out"
    assert tokens[0] == full[0], "the prompt is attended in full"
    return tokens


def test_a_budget_that_covers_the_context_changes_nothing(directory, full):
    core = make_sparse(directory)
    assert tokens_of(core, pages=PageChoice(len(PROMPT) + LENGTH)) == full
    assert tokens_of(core, "b", pages=PageChoice(16, beyond=len(PROMPT) + LENGTH)) == full
    assert tokens_of(core, "c") == full


@pytest.mark.parametrize("page_size", [16, PAGE_SIZES[-1]])
def test_who_reads_all_reads_the_same_in_pages_of_any_size(directory, full, page_size):
    core = make(directory, page_size=page_size, num_pages=8, attention="bound")
    assert tokens_of(core, pages=PageChoice(4 * page_size, beyond=len(PROMPT) + LENGTH)) == full
    assert tokens_of(core, "b", pages=PageChoice(max(96, 4 * page_size))) == full
    assert tokens_of(core, "c") == full


@pytest.mark.parametrize("budget", [3, 64])
def test_larger_pages_are_chosen_once_they_are_more_than_the_budget(directory, budget):
    """Seven pages of 32 tokens in the end, of which four are read; in every chunking."""
    pages, prompt, length = PageChoice(128), [*PROMPT, *PROMPT], 170
    said = {}
    for name, choice in (("full", None), ("sparse", pages), ("again", pages)):
        core = make(directory, page_size=32, num_pages=20, attention="bound", budget=budget)
        core.add(greedy(name, prompt, length, pages=choice))
        said[name] = run(core).tokens[name]
    covered = 128 - len(prompt)
    assert said["sparse"][:covered] == said["full"][:covered]
    assert said["sparse"] == said["again"] != said["full"]


def test_the_default_budget_leaves_something_to_choose_in_pages_of_every_size():
    assert MIN_BUDGET * PAGE_SIZES[-1] <= DEFAULT_BUDGET


@BOTH
def test_the_same_among_others_of_all_kinds(directory, full, sparse, overlap):
    core = make_sparse(directory, num_pages=800, overlap=overlap)
    for i, prompt in enumerate(others(20)):
        pages = (None, LEAST, PageChoice(24), PageChoice(40, share=0.5))[i % 4]
        core.add(greedy(f"x{i}", prompt, 5 + 2 * i, pages=pages))
    core.add(greedy("full", PROMPT, LENGTH))
    core.add(greedy("sparse", PROMPT, LENGTH, pages=LEAST))
    got = run(core).tokens
    assert (got["full"], got["sparse"]) == (full, sparse)


@BOTH
def test_the_same_after_preemption(directory, sparse, overlap):
    """What had a budget has it again when it is computed again, many tokens to a step."""
    core = make_sparse(directory, num_pages=36, overlap=overlap)
    for i, prompt in enumerate(others(3)):
        core.add(greedy(f"x{i}", prompt[:12], 40))
    core.add(greedy("a", PROMPT, LENGTH, pages=LEAST))
    request = core.requests["a"]
    got = run(core)
    assert request.num_preemptions > 0
    assert got.tokens["a"] == sparse


@pytest.mark.parametrize("budget", [3, 64])
def test_the_same_in_every_chunking_and_on_pages_of_others(directory, full, sparse, budget):
    """Pages come back to the pool with summaries in them that nobody may mistake for his own."""
    core = make_sparse(directory, num_pages=24, budget=budget)
    for i in range(3):
        assert tokens_of(core, f"sparse{i}", pages=LEAST) == sparse
        assert tokens_of(core, f"full{i}") == full


def test_prompts_are_shared_and_what_was_attended_in_part_is_not(directory, full, sparse):
    core = make_sparse(directory)

    def cached(prompt, tokens=1, **sampling):
        core.add(greedy("a", prompt, tokens, **sampling))
        return run(core).cached["a"]

    assert cached(PROMPT, LENGTH, pages=LEAST) == 0
    assert cached([*PROMPT, *sparse]) == 20, "the prompt's pages, and none of the answer's"
    core.reset_prefix_cache()
    assert cached(PROMPT, LENGTH) == 0
    assert cached([*PROMPT, *full], pages=LEAST) == 80
    assert tokens_of(core, pages=LEAST) == sparse
    assert tokens_of(core) == full


def test_nobody_waits_for_pages_that_will_not_be_offered():
    """A request that resumes computes its answer again, but only its prompt for everybody."""
    scheduler = Scheduler(
        PagePool(64, 4), max_num_seqs=4, max_num_batched_tokens=64, max_model_len=200
    )
    tokens = list(range(30))
    resumed = Request("resumed", tokens, SamplingParams(40, pages=LEAST), num_prompt_tokens=8)
    next_turn = Request("next", [*tokens], SamplingParams(5), num_prompt_tokens=30)
    scheduler.add(resumed)
    scheduler.add(next_turn)
    [item] = scheduler.next().items
    assert item.request is resumed, "they share a prompt, which one computes for both"
    resumed.num_computed_tokens, resumed.num_in_flight = item.end, 1
    scheduler.publish(item)
    assert [item.request.id for item in scheduler.next().items] == ["resumed", "next"]
    assert next_turn.num_cached_tokens == 8


def test_pages_within_the_first_part_are_offered_as_ever(directory):
    core = make_sparse(directory)
    answer = tokens_of(core, pages=PageChoice(16, beyond=48))
    core.add(greedy("b", [*PROMPT, *answer], 2))
    assert run(core).cached["b"] == 48


def test_how_much_is_read_is_measured_now_and_then(directory):
    core = make_sparse(directory)
    core.add(greedy("a", PROMPT, LENGTH, pages=LEAST))
    found = []
    while core.has_work:
        read = core.step().stats.pages_read
        if read is not None:
            found.append(read)
    assert 2 <= len(found) <= 4
    assert all(0.1 < read < 0.6 for read in found)
    assert found == sorted(found, reverse=True), "the context grows, the budget does not"


def test_a_model_is_exact_unless_requests_are_sparse_by_default(directory):
    def info(**options):
        config = EngineConfig(str(directory), device="cpu", page_size=4, num_pages=9, **options)
        return build_runner(config)[1]

    assert info().attention is None
    opted = info(page_budget=32, attention_from=100)
    assert (opted.exact, opted.attention.mode, opted.attention.beyond) == (True, "full", 100)
    assert opted.attention.modes == ["full", "bound"]
    bound = info(attention="bound", page_share=0.9)
    assert (bound.exact, bound.attention.budget) == (False, 256)
    assert bound.approximation == describe(bound.attention)
    assert (
        "attention reads 256 tokens of the context by bound, or less that gets 90%"
        in bound.approximation
    )


def test_what_cannot_be_is_refused_by_name(directory, tmp_path):
    for options, message in (
        ({"attention": "some"}, "attention='some' is not one of full, bound, gate"),
        ({"attention": "gate"}, "attention=gate needs attention_gates"),
        ({"page_budget": 15}, "page_budget=15 is less than 16: the first page of 4 tokens and"),
        ({"page_budget": 0}, "page_budget=0 is less than 16"),
        ({"page_budget": 257}, "page_budget=257 is more than the context of 256 tokens"),
        ({"attention": "bound", "page_share": 0.0}, "page_share=0.0 is not above 0"),
        ({"page_share": 0.5}, "page_share needs attention bound or gate"),
        ({"attention_from": 100}, "attention_from needs attention bound or gate"),
        ({"attention_gates": str(tmp_path)}, "config.json is missing"),
    ):
        with pytest.raises(ModelError, match=message):
            make(directory, **options)
