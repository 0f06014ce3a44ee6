"""Prompt tokens are scored as if they had been sampled, whatever chunks and pages they came in."""

import published
import pytest
from test_runner import BOTH, PROMPT, greedy, make, others

NAMES = ["turbosparse-mistral", "turbosparse-mixtral"]


@pytest.fixture(scope="module", params=NAMES)
def directory(request, tmp_path_factory):
    return published.make(tmp_path_factory.mktemp("model"), request.param)


def scores(core, name, prompt, k=0, **options):
    """Every scored prompt token of one request, in order."""
    core.add(greedy(name, prompt, 2, prompt_logprobs=k, **options))
    found = []
    for _ in range(400):
        if name not in core.requests:
            return found
        for output in core.step().outputs:
            if output.id == name:
                found += output.prompt_logprobs or []
    raise AssertionError("it does not end")


@BOTH
def test_a_prompt_scores_as_its_tokens_did_when_they_were_sampled(directory, overlap):
    core = make(directory, overlap=overlap)
    core.add(greedy("a", PROMPT, 20, logprobs=2))
    outputs = [o for _ in range(60) for o in core.step().outputs if o.id == "a"]
    text = [o.token_id for o in outputs]
    found = scores(core, "again", PROMPT + text, 2)
    assert len(found) == len(PROMPT) + 20 - 1, "one for each token that follows another"
    assert found[len(PROMPT) - 1 :] == [o.logprobs for o in outputs]


@BOTH
def test_scores_are_the_same_in_chunks_in_company_and_after_a_prefix_hit(directory, overlap):
    alone = scores(make(directory, overlap=overlap), "a", PROMPT, 1)
    core = make(directory, overlap=overlap, budget=5)
    for i, prompt in enumerate(others(6)):
        core.add(greedy(f"x{i}", prompt, 9))
    assert scores(core, "a", PROMPT, 1) == alone
    assert scores(core, "again", PROMPT, 1) == alone, "its pages are known by now"


@BOTH
def test_each_token_is_scored_once_though_its_request_was_preempted(directory, overlap):
    core = make(directory, num_pages=24, overlap=overlap)
    for i, prompt in enumerate(others(3)):
        core.add(greedy(f"x{i}", prompt[:12], 40))
    core.add(greedy("a", PROMPT, 24, prompt_logprobs=0))
    request, found = core.requests["a"], []
    while "a" in core.requests:
        found += [s for o in core.step().outputs if o.id == "a" for s in o.prompt_logprobs or []]
    assert request.num_preemptions > 0
    assert found == scores(make(directory), "alone", PROMPT)
