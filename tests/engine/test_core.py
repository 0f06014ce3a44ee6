"""The engine's promises about tokens: the same text alone, in company, preempted, and cached."""

import pytest
from scripted import EOS, expected, make_core, next_token, run, submit

BOTH = pytest.mark.parametrize("overlap", [False, True], ids=["settled-at-once", "overlapped"])
PROMPT = list(range(3, 20))


@BOTH
def test_a_request_alone(overlap):
    core = make_core(overlap=overlap)
    core.add(submit("a", PROMPT, 12))
    got = run(core)
    assert got.tokens["a"] == expected(PROMPT, 12)
    assert got.finish == {"a": "length"}


@BOTH
def test_the_same_among_32_others(overlap):
    core = make_core(overlap=overlap, num_pages=400)
    for i in range(16):
        core.add(submit(f"x{i}", list(range(i, 2 * i + 5)), 5 + i))
    core.add(submit("a", PROMPT, 12))
    for i in range(16, 32):
        core.add(submit(f"x{i}", list(range(i, 2 * i + 5)), 5 + i % 7))
    got = run(core)
    assert got.tokens["a"] == expected(PROMPT, 12)
    assert len(got.finish) == 33


@BOTH
def test_the_same_after_preemption(overlap):
    core = make_core(overlap=overlap, num_pages=14, budget=64)
    prompts = {f"r{i}": [i * 50 + j for j in range(10)] for i in range(4)}
    for name, prompt in prompts.items():
        core.add(submit(name, prompt, 20))
    steps = 0
    got, preemptions = None, 0
    from_core = core.step

    def counting():
        nonlocal preemptions, steps
        out = from_core()
        preemptions += out.stats.num_preemptions
        steps += 1
        return out

    core.step = counting
    got = run(core)
    assert preemptions > 0
    for name, prompt in prompts.items():
        assert got.tokens[name] == expected(prompt, 20)


@BOTH
def test_the_same_with_a_prefix_hit(overlap):
    core = make_core(overlap=overlap)
    core.add(submit("first", PROMPT, 6))
    first = run(core)
    core.add(submit("again", PROMPT, 6))
    core.add(submit("longer", [*PROMPT[:9], 500, 501], 6))
    got = run(core)
    assert got.tokens["again"] == first.tokens["first"] == expected(PROMPT, 6)
    assert got.tokens["longer"] == expected([*PROMPT[:9], 500, 501], 6)
    assert first.cached == {"first": 0}
    assert got.cached == {"again": 16, "longer": 8}


@BOTH
def test_a_prompt_that_is_cached_whole_still_computes_its_last_token(overlap):
    core = make_core(overlap=overlap, page_size=4)
    for name in ("a", "b"):
        core.add(submit(name, list(range(8)), 3))
        got = run(core)
        assert got.tokens[name] == expected(list(range(8)), 3)
    assert got.cached["b"] == 4


@BOTH
def test_choices_of_one_prompt_share_its_pages(overlap):
    """Four choices submitted together: the prompt is computed once, the others wait a step."""
    core = make_core(overlap=overlap, budget=64)
    for i in range(4):
        core.add(submit(f"c{i}", PROMPT, 4))
    got = run(core)
    assert got.cached == {"c0": 0, "c1": 16, "c2": 16, "c3": 16}
    prefill = sum(core.runner.token_counts) - 4 * 3  # each decodes three tokens more
    assert prefill == len(PROMPT) + 3 * 1


@BOTH
def test_whoever_waits_for_a_prefix_goes_on_when_its_owner_leaves(overlap):
    core = make_core(overlap=overlap, budget=4)
    core.add(submit("owner", PROMPT, 4))
    core.add(submit("waiter", PROMPT, 4))
    core.step()
    core.abort(["owner"])
    assert run(core).tokens["waiter"] == expected(PROMPT, 4)


@BOTH
def test_without_prefix_caching_nothing_is_shared(overlap):
    core = make_core(overlap=overlap, prefix_caching=False)
    for name in ("a", "b"):
        core.add(submit(name, PROMPT, 4))
    got = run(core)
    assert set(got.cached.values()) == {0}
    assert got.tokens["a"] == got.tokens["b"] == expected(PROMPT, 4)


@BOTH
def test_a_stop_token_ends_the_text_and_is_delivered(overlap):
    first = next_token(PROMPT)
    second = next_token([*PROMPT, first])
    core = make_core(overlap=overlap)
    core.add(submit("a", PROMPT, 12, stop_token_ids=(second,)))
    got = run(core)
    assert got.tokens["a"] == [first, second]
    assert got.finish["a"] == "stop"


@BOTH
def test_eos_ends_the_text_unless_ignored_or_too_early(overlap):
    first = next_token(PROMPT)
    for sampling, finish in (
        ({}, "stop"),
        ({"ignore_eos": True}, "length"),
        ({"min_tokens": 1}, "length"),
    ):
        core = make_core(overlap=overlap)
        core.eos_token_ids = frozenset([first])
        core.add(submit("a", PROMPT, 4, **sampling))
        assert run(core).finish["a"] == finish


@BOTH
def test_the_context_ends_the_text(overlap):
    core = make_core(overlap=overlap, max_model_len=20)
    core.add(submit("a", PROMPT, 50))
    got = run(core)
    assert len(PROMPT) + len(got.tokens["a"]) == 20
    assert got.finish["a"] == "length"
    core.add(submit("b", list(range(20)), 1))
    assert "the prompt has 20 tokens, the context is 20" in run(core).errors["b"]


@BOTH
def test_a_request_that_the_pool_can_never_hold_fails_alone(overlap):
    core = make_core(overlap=overlap, num_pages=5, page_size=4)
    core.add(submit("too long", list(range(20)), 4))
    core.add(submit("grows", list(range(10)), 50))
    core.add(submit("fits", list(range(30, 36)), 4))
    got = run(core)
    message = "the K/V pool of 5 pages (20 tokens) is too small for this request of 21 tokens"
    assert got.errors["too long"] == message
    assert got.errors["grows"] == message
    assert got.tokens["grows"] == expected(list(range(10)), 11)  # what it got before is right
    assert got.tokens["fits"] == expected(list(range(30, 36)), 4)


@BOTH
def test_abort_at_any_moment_frees_everything(overlap):
    for moment in range(8):
        core = make_core(overlap=overlap, budget=6)
        core.add(submit("a", PROMPT, 12))
        core.add(submit("b", PROMPT[::-1], 3))
        outputs = [output for _ in range(moment) for output in core.step().outputs]
        core.abort(["a", "never heard of"])
        outputs += [output for _ in range(50) if core.has_work for output in core.step().outputs]
        assert [o.finish.value for o in outputs if o.id == "a" and o.finish] == ["abort"]
        assert [o.token_id for o in outputs if o.id == "b"] == expected(PROMPT[::-1], 3)
        core.scheduler.check()
        assert core.scheduler.pool.num_held == 0
        assert len(core.runner.free_rows) == 40


@BOTH
def test_an_error_in_a_step_fails_its_requests_and_no_others(overlap):
    core = make_core(overlap=overlap, max_num_seqs=2)
    for name in "abc":
        core.add(submit(name, [ord(name), *PROMPT], 6))
    core.step()
    core.runner.fail_with = ValueError("bad luck")
    got = run(core)
    assert {k for k, v in got.finish.items() if v == "error"} == {"a", "b"}
    assert got.errors["a"] == "the step failed: ValueError: bad luck"
    assert got.tokens["c"] == expected([ord("c"), *PROMPT], 6)
    assert len(core.runner.free_rows) == 2


@BOTH
def test_an_error_found_late_fails_the_step_that_made_it(overlap):
    """Read back one step later: the request that came since is in the next step and goes on."""
    core = make_core(overlap=overlap)
    core.add(submit("a", PROMPT, 6))
    outputs = core.step().outputs
    core.runner.fail_settling_with = ValueError("bad luck")
    core.add(submit("b", PROMPT[::-1], 6))
    outputs += core.step().outputs
    failed = {o.id for o in outputs if o.error == "the step failed: ValueError: bad luck"}
    assert failed == ({"a"} if overlap else {"a", "b"})
    got = run(core)
    if overlap:
        assert got.tokens["b"] == expected(PROMPT[::-1], 6)
    assert len(core.runner.free_rows) == 40


@BOTH
def test_who_is_preempted_or_still_waits_can_be_aborted(overlap):
    core = make_core(overlap=overlap, num_pages=8, max_num_seqs=2, budget=64)
    for name in ("first", "second", "third"):
        core.add(submit(name, [ord(name[0]) + i for i in range(12)], 12))
    for _ in range(30):
        if core.step().stats.num_preemptions:
            break
    assert [r.id for r in core.scheduler.waiting] == ["second", "third"]
    core.abort(["second", "third"])
    got = run(core)
    assert got.finish["second"] == got.finish["third"] == "abort"
    assert got.finish["first"] == "length"


def test_a_lost_device_ends_the_engine():
    core = make_core()
    core.add(submit("a", PROMPT, 6))
    core.runner.fail_with = SystemError("device lost")
    with pytest.raises(SystemError):
        core.step()


@BOTH
def test_decodes_do_not_wait_for_a_long_prompt(overlap):
    """A prompt of ten chunks arrives: the running request still gets a token in every step."""
    core = make_core(overlap=overlap, budget=8)
    core.add(submit("talks", [1, 2, 3], 30))
    core.step()
    core.step()
    core.add(submit("long", list(range(80)), 2))
    for _ in range(10):
        assert [o.id for o in core.step().outputs] == ["talks"]
    assert max(core.runner.token_counts) <= 8


def test_stats_tell_prefill_from_decode_and_count_the_cache():
    core = make_core(budget=64)
    core.add(submit("a", PROMPT, 3))
    first, second = core.step().stats, core.step().stats
    assert (first.num_prefill_tokens, first.num_decode_tokens) == (17, 0)
    assert (second.num_prefill_tokens, second.num_decode_tokens) == (0, 1)
    assert (first.num_prefix_queries, first.num_prefix_hits) == (17, 0)
    run(core)
    core.add(submit("b", PROMPT, 3))
    stats = core.step().stats
    assert (stats.num_prefix_queries, stats.num_prefix_hits) == (17, 16)
    assert stats.num_running == 1


def test_eos_is_no_token_of_the_script():
    """Else the tests above would end early for the wrong reason."""
    assert EOS not in expected(PROMPT, 100)


def test_a_reset_forgets_prefixes_and_disturbs_nobody():
    core = make_core()
    core.add(submit("a", list(range(20)), 12))
    core.step()
    core.reset_prefix_cache()
    core.add(submit("b", list(range(20)), 4))
    got = run(core)
    assert got.cached == {"a": 0, "b": 0}
    assert got.tokens["a"] == expected(list(range(20)), 12)[1:]  # the first came with the step
    core.add(submit("c", list(range(20)), 4))
    assert run(core).cached["c"] == 16
