"""Answers that must follow a grammar, on the bundled model: they do, and others do not notice."""

import json
import pathlib
import re

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from scripted import run, submit
from test_runner import BOTH, make

from turbosparse.engine.core import EngineCore
from turbosparse.engine.grammar import Constraint, Grammars
from turbosparse.engine.masks import unpacked
from turbosparse.engine.messages import StepOutput

TINY = pathlib.Path(__file__).parents[2] / "models" / "tiny"
TOKENIZER = LLTokenizer(str(TINY / "tokenizer.json"))
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "kinds": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "size", "kinds"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(SCHEMA, overrides={"whitespace_flexible": False})
DIGITS = LLMatcher.grammar_from_regex(r"[a-c]{3}-\d{2,4}")
PROMPT = TOKENIZER.tokenize_str("Once upon a time")


@pytest.fixture(scope="module")
def engine() -> EngineCore:
    return make(TINY, num_pages=400)


def core_of(engine: EngineCore, *, overlap: bool) -> EngineCore:
    """Another core over the same model; the one before it is idle."""
    grammars = Grammars(TINY / "tokenizer.json", engine.runner.decoder.config.vocab_size, [2, 4])
    return EngineCore(engine.runner, engine.scheduler, [2, 4], overlap=overlap, grammars=grammars)


def add(core: EngineCore, id: str, max_tokens: int = 150, **sampling) -> None:
    core.add(submit(id, PROMPT, max_tokens, **sampling))
    while core.is_compiling:
        core.add_compiled()


def texts(got) -> dict[str, str]:
    return {id: TOKENIZER.decode_str([t for t in tokens if t not in (2, 4)])
            for id, tokens in got.tokens.items()}  # fmt: skip


@BOTH
def test_every_answer_follows_its_grammar_and_ends(engine, overlap):
    core = core_of(engine, overlap=overlap)
    for seed in range(12):
        add(core, f"json{seed}", seed=seed, grammar=JSON)
        add(core, f"digits{seed}", seed=seed, grammar=DIGITS, temperature=2.0)
    got = run(core)
    assert set(got.finish.values()) == {"stop"}
    for id, text in texts(got).items():
        if id.startswith("digits"):
            assert re.fullmatch(r"[a-c]{3}-\d{2,4}", text), text
        else:
            found = json.loads(text)
            assert set(found) == {"name", "size", "kinds"}
            assert 0 <= found["size"] <= 999
            assert set(found["kinds"]) <= {"a", "b"}
    assert len(set(texts(got).values())) > 12, "seeds differ"


def test_company_and_overlap_change_neither_the_free_nor_the_constrained(engine):
    def told(*, free: int, constrained: int, overlap: bool) -> dict[str, list[int]]:
        core = core_of(engine, overlap=overlap)
        for i in range(free):
            add(core, f"free{i}", 40, seed=i, ignore_eos=True)
        for i in range(constrained):
            add(core, f"json{i}", seed=i, grammar=JSON)
        return run(core).tokens

    alone = told(free=1, constrained=0, overlap=False) | told(free=0, constrained=1, overlap=False)
    for overlap in (False, True):
        mixed = told(free=4, constrained=4, overlap=overlap)
        assert {id: mixed[id] for id in alone} == alone


def test_with_overlap_only_the_constrained_wait_for_their_tokens(engine):
    core = core_of(engine, overlap=True)
    add(core, "free", 30, ignore_eos=True)
    add(core, "json", 30, grammar=JSON)
    steps: list[StepOutput] = [core.step() for _ in range(12)]
    brought = [{o.id for o in step.outputs} for step in steps[2:]]
    assert all("free" in ids for ids in brought), "a token a step, as without company"
    assert ["json" in ids for ids in brought] == [False, True] * 5
    run(core)


@BOTH
def test_a_constrained_request_resumes_after_preemption(overlap):
    core = core_of(make(TINY, num_pages=12), overlap=overlap)
    add(core, "free", 44, ignore_eos=True)
    add(core, "json", 44, seed=3, grammar=JSON)
    request = core.requests["json"]
    got = run(core)
    assert request.num_preemptions > 0
    again = core_of(make(TINY), overlap=False)
    add(again, "json", 44, seed=3, grammar=JSON)
    assert got.tokens["json"] == run(again).tokens["json"]


def test_a_grammar_that_does_not_compile_ends_its_request_alone(engine):
    core = core_of(engine, overlap=False)
    add(core, "bad", grammar="start: nothing_of_this_name")
    add(core, "good", grammar=DIGITS)
    got = run(core)
    assert got.finish == {"bad": "error", "good": "stop"}
    assert "nothing_of_this_name" in got.errors["bad"]


def test_who_leaves_while_compiling_is_forgotten(engine):
    core = core_of(engine, overlap=False)
    core.add(submit("gone", PROMPT, 5, grammar=JSON))
    core.abort(["gone"])
    while core.is_compiling:
        core.add_compiled()
    assert run(core).finish == {"gone": "abort"}


def test_the_same_grammar_is_compiled_once(engine):
    grammars = core_of(engine, overlap=False).grammars
    first, second = grammars.constraint(JSON), grammars.constraint(JSON)
    assert first._compiled is second._compiled
    while not second.is_ready:
        pass
    for constraint in (first, second):
        constraint.start()
    advance(first, '{"name":"x')
    advance(second, '{"name":"y')


def advance(constraint: Constraint, text: str) -> None:
    for token in TOKENIZER.tokenize_str(text):
        constraint.advance(token)


def test_a_device_unpacks_masks_as_the_host_does():
    words = torch.randint(-(2**31), 2**31, (3, 5), dtype=torch.int64).int()
    bits = np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little")[:, :150]
    assert torch.equal(unpacked(words, 150), torch.from_numpy(bits).bool())
