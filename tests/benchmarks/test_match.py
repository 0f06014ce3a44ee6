"""The match benchmark: what it calls a divergence, and a tie; and that it can fail."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import match
import pytest
import torch

from turbosparse.models.batch import FfnMode
from turbosparse.models.load import load
from turbosparse.models.sequence import observe, random_ids
from turbosparse.models.tools import shapes
from turbosparse.models.tools.shapes import Shape

CPU = torch.device("cpu")
TINY = Shape(hidden=48, layers=2, neurons=80, vocab=300, heads=4, kv_heads=2, positions=256)


@pytest.fixture
def directory(tmp_path) -> Path:
    recipe = shapes.recipe_of("turbosparse-mistral", TINY, 0.2, 0)
    shapes.describe(tmp_path, "turbosparse-mistral", TINY, "float32", recipe)
    return tmp_path


def said(tokens, logits) -> match.Said:
    """One text: the two best tokens and logits of every step."""
    return match.Said(torch.tensor([tokens]), torch.tensor([logits]))


def test_a_swap_within_rounding_is_a_tie():
    """bf16 numbers between 4 and 8 are 1/32 apart."""
    reference = said([[5, 6], [7, 8], [9, 1]], [[4.5, 1.0], [4.25, 4.21875], [3.0, 2.0]])
    ours = said([[5, 6], [8, 7], [2, 3]], [[4.5, 1.0], [4.25, 4.21875], [3.0, 2.0]])
    (found,) = match.divergences(ours, reference, torch.bfloat16, 0.0)
    assert (found.request, found.step, found.gap) == (0, 1, 0.03125)
    assert found.is_tie
    (found,) = match.divergences(ours, reference, torch.float32, 0.0)
    assert not found.is_tie, "in fp32 the same gap is many roundings wide"
    (found,) = match.divergences(ours, reference, torch.float32, 0.02)
    assert found.is_tie, "within twice the noise"


def test_noise_is_measured_where_both_have_read_the_same():
    """The best logit counts, before the texts part; what a prompt's places held counts too."""
    reference = said([[5, 6], [3, 6], [7, 8]], [[4.5, 1.0], [2.0, 1.0], [5.0, 2.0]])
    ours = said([[5, 6], [3, 6], [8, 7]], [[4.5, 9.0], [2.25, 1.0], [6.0, 4.0]])
    assert match.noise_between(ours, reference) == pytest.approx(0.25, rel=0.01)
    prompt = [[1, 2], [7, 8]], [[3.0, 1.0], [5.0, 2.0]]
    other = [[2, 1], [7, 8]], [[3.5, 1.0], [5.5, 2.0]]
    given = [match.Said(torch.tensor([t]), torch.tensor([v]), 1) for t, v in (other, prompt)]
    assert match.noise_between(*given) == pytest.approx(0.5, rel=0.01)
    assert match.divergences(*given, torch.bfloat16, 0.0) == []


def test_a_token_that_the_reference_never_thought_of_is_no_tie():
    reference, ours = said([[5, 6]], [[4.5, 4.5]]), said([[9, 5]], [[4.5, 4.5]])
    (found,) = match.divergences(ours, reference, torch.bfloat16, 100.0)
    assert not found.is_tie


def test_the_same_text_has_no_divergence():
    text = said([[5, 6], [7, 8]], [[4.5, 1.0], [5.0, 2.0]])
    assert match.divergences(text, text, torch.bfloat16, 0.0) == []


def test_greedy_says_what_the_whole_sequence_says(directory):
    """Token by token over pages of its own, against one forward pass over what it has said."""
    decoder = load(directory, CPU, torch.float32).decoder
    prompts = random_ids(decoder, 12).view(2, 6)
    for mode in FfnMode:
        found = match.greedy(decoder, prompts, 5, mode)
        assert found.tokens.shape == (2, 10, match.BEST)
        for prompt, tokens, logits in zip(prompts, found.tokens, found.logits, strict=True):
            said_tokens = tokens[found.num_given :, 0]
            whole = observe(decoder, torch.cat((prompt, said_tokens))).logits[:10]
            assert whole.argmax(1).tolist() == tokens[:, 0].tolist()
            torch.testing.assert_close(whole.topk(match.BEST).values, logits, atol=1e-4, rtol=0)


def command(monkeypatch, directory, *flags: str) -> None:
    few = ["--prompts", "4", "--length", "3", "--tokens", "6", "--batch", "2"]
    given = ["--model", str(directory), "--device", "cpu", "--dtype", "float32"]
    monkeypatch.setattr(sys, "argv", ["match.py", *given, *few, *flags])
    match.main()


def recipe_only(directory, device, num_tokens=256) -> float:
    """The reference cannot draw what another backend planted; its own test is below."""
    return 1e-5


def test_the_command_reports_every_mode(monkeypatch, directory, capsys):
    monkeypatch.setattr(match, "logit_difference", recipe_only)
    command(monkeypatch, directory)
    out = capsys.readouterr().out
    for mode in ("token", "union"):
        assert f"{mode} against dense, 2 at once: 4 of 4 texts of 6 tokens the same" in out
    assert "at most 1e-05 apart" in out


def test_rounded_predictors_are_counted_and_do_not_fail(monkeypatch, directory, capsys):
    """Of the 24 tokens some come by themselves, and no fewer after the reference's own text."""
    monkeypatch.setattr(match, "logit_difference", recipe_only)
    command(monkeypatch, directory, "--predictor-dtype", "float8")
    said = "float8 predictors (approximate) against dense, 2 at once: "
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith(said)]
    texts, before, after = re.search(
        r"(\d) of 4 texts.* ([\d.]+)% of.* ([\d.]+)% of", line
    ).groups()
    assert float(after) >= float(before) >= 25 * int(texts) > 0


def test_predictors_as_they_were_match_themselves(directory):
    """What is counted is the difference, and nothing of the counting."""
    decoder = load(directory, CPU, torch.float32).decoder
    parts = random_ids(decoder, 12).view(4, 3).split(2)
    reference = match._greedy_all(decoder, parts, 6, FfnMode.DENSE)
    line = match.rounded_against(decoder, parts, reference, 6)
    assert "4 of 4 texts of 6 tokens the same, 100.0% of" in line
    assert line.endswith("after the reference's own text 100.00% of the next tokens")
    flipped = replace(reference, tokens=reference.tokens.roll(1, -1))
    line = match.rounded_against(decoder, parts, flipped, 6)
    assert "0 of 4 texts of 6 tokens the same, 0.0% of" in line


def test_a_mode_that_says_something_else_fails(monkeypatch, directory, capsys):
    right = match.greedy

    def wrong(decoder, prompts, num_steps, mode):
        found = right(decoder, prompts, num_steps, mode)
        if mode is not FfnMode.UNION:
            return found
        tokens = found.tokens.clone()
        place = found.num_given + 3
        tokens[0, place] = tokens[0, place].roll(4)
        return replace(found, tokens=tokens)

    monkeypatch.setattr(match, "greedy", wrong)
    monkeypatch.setattr(match, "logit_difference", recipe_only)
    with pytest.raises(SystemExit, match="1"):
        command(monkeypatch, directory)
    out = capsys.readouterr().out
    assert "union against dense, 2 at once: 2 of 4 texts" in out
    assert "NO TIE: Divergence(request=2, step=3" in out


def test_logits_that_are_too_far_off_fail(monkeypatch, directory, capsys):
    monkeypatch.setattr(match, "logit_difference", lambda *_: 2e-3)
    monkeypatch.setattr(match, "compare", lambda *_: iter(()))
    with pytest.raises(SystemExit, match="1"):
        command(monkeypatch, directory)
    command(monkeypatch, directory, "--must", "0.01")


def test_the_bundled_model_is_held_against_the_reference():
    assert match.logit_difference(match.BUNDLED, CPU, 48) < 1e-3
