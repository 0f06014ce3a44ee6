"""Any interleaving of submit, abort, step, preemption: balanced books, right texts, all freed."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted import Collected, expected, make_core, submit

from turbosparse.engine.pages import PagePool, page_hashes
from turbosparse.engine.request import Request, SamplingParams


class Interleaving(RuleBasedStateMachine):
    """A small pool, so that preemption is ordinary; prompts from one root, so that sharing is."""

    @initialize(
        num_pages=st.integers(6, 30),
        page_size=st.sampled_from([1, 3, 4]),
        budget=st.integers(1, 24),
        max_num_seqs=st.integers(1, 6),
        overlap=st.booleans(),
        prefix_caching=st.booleans(),
    )
    def start(self, **options) -> None:
        self.core = make_core(max_model_len=70, **options)
        self.budget, self.num_rows = options["budget"], options["max_num_seqs"]
        self.got = Collected()
        self.asked: dict[str, tuple[list[int], list[int], str]] = {}  # prompt, tokens, finish
        self.aborted: set[str] = set()
        self.num_failed_steps = 0

    @rule(
        shared=st.integers(0, 14),
        own=st.lists(st.integers(0, 3), max_size=4),
        max_tokens=st.integers(1, 12),
        stop_at=st.none() | st.integers(0, 11),
    )
    def submit(self, shared, own, max_tokens, stop_at) -> None:
        name = f"r{len(self.asked)}"
        prompt = [*range(100, 100 + shared), *own] or [1]
        stop = None if stop_at is None else expected(prompt, 12)[stop_at]
        tokens = expected(prompt, max_tokens, stop)
        self.asked[name] = (prompt, tokens, "stop" if tokens[-1] == stop else "length")
        stops = {} if stop is None else {"stop_token_ids": (stop,)}
        self.core.add(submit(name, prompt, max_tokens, **stops))

    @precondition(lambda self: getattr(self, "asked", None))
    @rule(data=st.data())
    def abort(self, data) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        self.aborted.add(name)
        self.core.abort([name])

    @rule(launching=st.booleans())
    def fail(self, launching) -> None:
        """The next step raises, while it is launched or when it is read."""
        attribute = "fail_with" if launching else "fail_settling_with"
        setattr(self.core.runner, attribute, ValueError("bad luck"))
        self.num_failed_steps += 1

    @rule(times=st.integers(1, 4))
    def step(self, times) -> None:
        for _ in range(times):
            self.got.take(self.core.step().outputs)

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "core"):
            self.core.scheduler.check()
            assert all(count <= self.budget for count in self.core.runner.token_counts)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        # Nobody starves: whatever is left ends within the steps that its tokens need one by one,
        # preempted over and over.
        for _ in range(200 * (len(self.asked) + 1)):
            if not self.core.has_work:
                break
            self.got.take(self.core.step().outputs)
        assert not self.core.has_work
        self.core.scheduler.check()
        assert self.core.scheduler.pool.num_held == 0
        assert sorted(self.got.finish) == sorted(self.asked)
        assert len(self.core.runner.free_rows) == self.num_rows
        for name, (_, want, finish) in self.asked.items():
            tokens = self.got.tokens.get(name, [])
            assert tokens == want[: len(tokens)], name
            if self.got.finish[name] == "error":
                assert self.num_failed_steps or "too small" in self.got.errors[name]
            elif self.got.finish[name] == "abort":
                assert name in self.aborted
            else:
                assert (tokens, self.got.finish[name]) == (want, finish), name


# derandomize: the same examples in every run, so a red build is a change and not a draw
Interleaving.TestCase.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, derandomize=True
)
TestInterleaving = Interleaving.TestCase


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5), st.integers(0, 40))
def test_page_hashes_are_a_chain(tokens, page_size, cut):
    """Computing them piecewise, as a request grows, gives what computing them at once gives."""
    whole = page_hashes(tokens, page_size, [])
    begun = page_hashes(tokens[:cut], page_size, [])
    assert page_hashes(tokens, page_size, begun) == whole
    assert len(whole) == len(tokens) // page_size
    assert len(set(whole)) == len(whole)


def holder(pool: PagePool, num_pages: int) -> Request:
    request = Request("r", [1], SamplingParams(max_tokens=1), 1)
    pool.allocate(request, num_pages)
    return request


def test_a_cached_page_is_reused_last_and_the_oldest_first():
    pool = PagePool(4, 2)
    a = holder(pool, 3)
    first, second, plain = a.pages
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.free(a)
    never_used = next(p for p in range(4) if p not in (first, second, plain))
    b = holder(pool, 3)
    # The two without a hash go first; of the cached ones the chain's end, freed first, goes next.
    assert set(b.pages[:2]) == {plain, never_used}
    assert b.pages[2] == second
    assert pool.match([b"1", b"2"]) == [first]
    pool.check([b])


def test_equal_pages_are_published_once():
    pool = PagePool(4, 2)
    a, b = holder(pool, 1), holder(pool, 1)
    pool.publish(a.pages[0], b"1")
    pool.publish(b.pages[0], b"1")
    assert pool.match([b"1"]) == a.pages
    pool.check([a, b])


def test_reset_forgets_prefixes_and_keeps_what_is_in_use():
    pool = PagePool(4, 2)
    a = holder(pool, 2)
    pool.publish(a.pages[0], b"1")
    pool.reset()
    assert pool.match([b"1"]) == []
    pool.check([a])
    pool.free(a)
    pool.check([])
