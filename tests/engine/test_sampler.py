"""The sampler keeps its promises: what each parameter does, and that nothing leaks between rows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turbosparse.engine.request import Request, SamplingParams
from turbosparse.engine.rows import Rows
from turbosparse.engine.sampler import sample, uniform
from turbosparse.models.kernels import ops

VOCAB = 50
EOS = (7,)
OPS, _ = ops.select(torch.device("cpu"), torch.float32)


def make_rows() -> Rows:
    return Rows(num_rows=8, max_pages=4, vocab_size=VOCAB, device=torch.device("cpu"))


def request(tokens=(1, 2, 3), outputs=(), rows=None, **sampling) -> Request:
    params = SamplingParams(max_tokens=99, **sampling)
    made = Request(
        id="r", token_ids=[*tokens, *outputs], sampling=params, num_prompt_tokens=len(tokens)
    )
    if rows is not None:
        rows.admit(made)
    return made


def logits(num_requests=1, seed=0) -> torch.Tensor:
    return torch.randn(num_requests, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def draw(scores, *requests, rows=None):
    return sample(scores.clone(), list(requests), rows or make_rows(), EOS, OPS)[0].tolist()


def drawn_set(scores, tries=400, **sampling) -> set[int]:
    """The tokens that come up over many seeds."""
    requests = [request(seed=i, **sampling) for i in range(tries)]
    return set(draw(scores.expand(tries, -1), *requests))


def test_temperature_zero_is_the_argmax():
    scores = logits(3)
    made = [request(temperature=0.0) for _ in range(3)]
    assert draw(scores, *made) == scores.argmax(-1).tolist()


def test_the_distribution_is_the_softmax():
    """Chi-squared over 4000 fixed seeds: repeatable, so it cannot flake."""
    scores, tries = logits() / 3, 4000
    requests = [request(seed=i, temperature=0.7) for i in range(tries)]
    counts = torch.bincount(
        torch.tensor(draw(scores.expand(tries, -1), *requests)), minlength=VOCAB
    )
    expected = (scores[0] / 0.7).softmax(-1) * tries
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_squared < 85  # 49 degrees of freedom: p = 0.001


def test_top_k_keeps_the_k_most_likely():
    scores = logits() / 3
    assert drawn_set(scores, top_k=3) == set(scores[0].topk(3).indices.tolist())
    assert drawn_set(scores, top_k=1) == {scores.argmax().item()}


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    probabilities = torch.full((1, VOCAB), 0.1 / (VOCAB - 3))
    probabilities[0, [4, 5, 6]] = torch.tensor([0.5, 0.25, 0.15])
    assert drawn_set(probabilities.log(), top_p=0.5) == {4}
    assert drawn_set(probabilities.log(), top_p=0.74) == {4, 5}
    assert drawn_set(probabilities.log(), top_p=0.8) == {4, 5, 6}


def test_top_p_counts_within_what_top_k_left():
    """As in vLLM and transformers: 0.5 of {0.5, 0.25} renormalised is reached by one token."""
    probabilities = torch.full((1, VOCAB), 0.25 / (VOCAB - 2))
    probabilities[0, [4, 5]] = torch.tensor([0.5, 0.25])
    assert drawn_set(probabilities.log(), top_k=2, top_p=0.66) == {4}
    assert drawn_set(probabilities.log(), top_k=2, top_p=0.67) == {4, 5}


def test_min_p_is_relative_to_the_most_likely():
    probabilities = torch.full((1, VOCAB), 0.09 / (VOCAB - 3))
    probabilities[0, [4, 5, 6]] = torch.tensor([0.6, 0.25, 0.06])
    assert drawn_set(probabilities.log(), min_p=0.2) == {4, 5}
    assert drawn_set(probabilities.log(), min_p=1.0) == {4}


def test_logit_bias_forces_and_forbids():
    scores = logits()
    best = scores.argmax().item()
    assert draw(scores, request(temperature=0.0, logit_bias=((9, 100.0),))) == [9]
    assert draw(scores, request(temperature=0.0, logit_bias=((best, -100.0),))) != [best]


def test_stops_are_impossible_before_min_tokens():
    scores = torch.zeros(1, VOCAB)
    scores[0, [7, 8, 9]] = torch.tensor([9.0, 8.0, 7.0])  # 7 is the model's eos
    stops = {"temperature": 0.0, "stop_token_ids": (8,)}
    assert draw(scores, request(min_tokens=2, **stops)) == [9]
    assert draw(scores, request(min_tokens=2, outputs=(1,), **stops)) == [9]
    assert draw(scores, request(min_tokens=2, outputs=(1, 1), **stops)) == [7]
    assert draw(scores, request(min_tokens=2, ignore_eos=True, **stops)) == [7]


def test_presence_and_frequency_count_the_output_alone():
    scores = torch.zeros(1, VOCAB)
    scores[0, [4, 5]] = torch.tensor([1.0, 0.7])
    for penalty in ("presence_penalty", "frequency_penalty"):
        rows = make_rows()
        unseen = request(tokens=(4,), temperature=0.0, rows=rows, **{penalty: 0.5})
        seen = request(tokens=(1,), outputs=(4,), temperature=0.0, rows=rows, **{penalty: 0.5})
        assert draw(scores.expand(2, -1), unseen, seen, rows=rows) == [4, 5]
    rows = make_rows()
    often = request(outputs=(4, 4, 4), temperature=0.0, rows=rows, frequency_penalty=0.2)
    assert draw(scores, often, rows=rows) == [5]


def test_repetition_penalty_counts_the_prompt_too_and_both_signs():
    scores = torch.full((1, VOCAB), -9.0)
    for pair in ([1.0, 0.7], [-1.0, -1.5]):
        scores[0, [4, 5]] = torch.tensor(pair)
        rows = make_rows()
        made = request(tokens=(4,), temperature=0.0, repetition_penalty=2.0, rows=rows)
        assert draw(scores, made, rows=rows) == [5]


def test_penalties_follow_what_was_sampled_before_the_host_has_read_it():
    """Two steps in a row with no settle between: the second must see the first one's token."""
    rows = make_rows()
    made = request(temperature=0.0, presence_penalty=2.0, rows=rows)
    scores = torch.zeros(1, VOCAB)
    scores[0, [4, 5]] = torch.tensor([1.5, 1.0])
    assert draw(scores, made, rows=rows) == [4]
    made.num_in_flight = 1
    assert draw(scores, made, rows=rows) == [5]


def test_a_row_given_to_another_request_forgets_the_first():
    rows = make_rows()
    first = request(outputs=(4,) * 3, temperature=0.0, frequency_penalty=1.0, rows=rows)
    row = first.row
    rows.release(first)
    second = request(temperature=0.0, frequency_penalty=1.0, rows=rows)
    assert second.row == row
    scores = torch.zeros(1, VOCAB)
    scores[0, 4] = 0.5
    assert draw(scores, second, rows=rows) == [4]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 0.5, 1.3]),
                "top_k": st.sampled_from([0, 2, 10]),
                "top_p": st.sampled_from([1.0, 0.8, 0.1]),
                "min_p": st.sampled_from([0.0, 0.1]),
                "seed": st.integers(0, 2**63 - 1),
                "frequency_penalty": st.sampled_from([0.0, 1.0]),
                "logprobs": st.sampled_from([None, 0, 3]),
            }
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_request_samples_the_same_alone_as_among_others(several):
    scores = logits(len(several), seed=len(several))
    rows = make_rows()
    together = draw(scores, *(request(rows=rows, **one) for one in several), rows=rows)
    for i, one in enumerate(several):
        rows = make_rows()
        assert draw(scores[i : i + 1], request(rows=rows, **one), rows=rows) == [together[i]]


def test_logprobs_are_the_models_own():
    """Before bias, penalties and temperature: what the model says, not what was made of it."""
    scores = logits(2)
    plain = request(temperature=0.0)
    asked = request(temperature=0.0, logprobs=3, logit_bias=((9, 100.0),))
    ids, read = sample(scores.clone(), [plain, asked], make_rows(), EOS, OPS)
    want = scores[1].log_softmax(-1)
    assert ids.tolist()[1] == 9
    assert len(read.chosen) == 1
    assert math.isclose(read.chosen.item(), want[9].item(), rel_tol=1e-5)
    torch.testing.assert_close(read.top[0], want.topk(3).values)
    assert read.top_ids[0].tolist() == want.topk(3).indices.tolist()


def test_logprobs_of_the_sampled_token_alone():
    _, read = sample(logits(), [request(temperature=0.0, logprobs=0)], make_rows(), EOS, OPS)
    assert read.top.shape == (1, 0)
    assert read.chosen.shape == (1,)


def test_uniform_is_uniform_and_repeatable():
    numbers = [uniform(seed, index) for seed in range(50) for index in range(50)]
    assert all(0 <= n < 1 for n in numbers)
    assert len(set(numbers)) == len(numbers)
    assert abs(sum(numbers) / len(numbers) - 0.5) < 0.02
    assert uniform(3, 4) == uniform(3, 4)


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1, -1])
def test_every_int64_is_a_seed(seed):
    assert 0 <= uniform(seed, 0) < 1
