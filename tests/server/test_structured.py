"""Answers in a given form, by every field that asks for one; the engine would say otherwise."""

import json
import re

import pytest

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
AS_TOLD = '{"n": 7, "ok": true}'


def content(server, told, **fields):
    """What it says when it is told something else; the answer has ended by itself."""
    choice = server.say(told, max_tokens=200, **fields)
    assert choice["finish_reason"] == "stop", choice
    return choice["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": FORMAT},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
    ],
    ids=["response_format", "structured_outputs", "as text", "guided_json"],
)  # fmt: skip
def test_a_schema(server, fields):
    assert content(server, AS_TOLD, **fields) == AS_TOLD
    found = json.loads(content(server, "I had rather not.", **fields))
    assert set(found) == {"n", "ok"}


@pytest.mark.parametrize(
    ("told", "fields", "pattern"),
    [
        ('{"a": [1]}', {"response_format": {"type": "json_object"}}, r'\{"a": \[1\]\}'),
        ("{}{}", {"structured_outputs": {"json_object": True}}, r"\{\}"),
        ("ab", {"structured_outputs": {"regex": "[xy]{3}"}}, "[xy]{3}"),
        ("xyx", {"guided_regex": "[xy]{3}"}, "xyx"),
        ("xyx", {"regex": "[xy]{3}"}, "xyx"),
        ("perhaps", {"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ("no", {"guided_choice": ["yes", "no"]}, "no"),
        ("bb", {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}}, "b"),
        ("cc", {"guided_grammar": 'root ::= [bc]+ "."'}, r"[bc]+\."),
        ("ab", {"ebnf": 'start: "a" "b"'}, "ab"),
    ],
)
def test_other_forms(server, told, fields, pattern):
    assert re.fullmatch(pattern, content(server, told, **fields))


def test_white_space_is_bounded(server):
    """A model that goes on indenting would never come to the point."""
    text = content(server, "{" + " " * 60, guided_json=SCHEMA)
    assert not re.search(r" {2}", text)
    assert content(server, '{\n  "n": 1,\n  "ok": false\n}', guided_json=SCHEMA).count("\n") == 3


def test_in_completions_streams_and_several_choices(server):
    body = {"prompt": "say:maybe", "guided_choice": ["yes", "no"], "n": 2}
    answer = server.client.post("/v1/completions", json=body).json()
    assert all(c["text"] in ("yes", "no") for c in answer["choices"])
    with server.client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        chunks = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    texts = ["", ""]
    for choice in (c for chunk in chunks for c in json.loads(chunk)["choices"]):
        texts[choice["index"]] += choice["text"]
    assert all(text in ("yes", "no") for text in texts)


def test_what_changes_nothing_is_accepted(server):
    assert server.say("free", response_format={"type": "text"})["message"]["content"] == "free"


def test_a_grammar_that_only_the_engine_finds_too_costly_fails_alone(server):
    """The check passes, the work does not: an error for this request, and the server goes on."""
    response = server.chat("say:x", regex="((a{1,1000}){1,1000}){1,1000}b", max_tokens=5)
    assert response.status_code in (200, 400, 500)
    assert server.say("still here")["message"]["content"] == "still here"
