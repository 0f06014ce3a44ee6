"""Tool calls in text: whatever the text, cutting it anywhere finds the same in the end."""

import json
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turbosparse.server.tool_parser import Call, ToolStream, parse


def call(name="f", **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def whole(text):
    found = parse(text, is_whole=True)
    return found.content, list(found.calls)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        ("plain text \n", "plain text \n", []),
        (call(a=1), "", [Call("f", '{"a": 1}')]),
        (f"I look.\n\n{call()}", "I look.", [Call("f", "{}")]),
        (f"{call('f')}\n{call('g', b=[])}\n", "", [Call("f", "{}"), Call("g", '{"b": []}')]),
        (f"{call('f')} and {call('g')}", "and", [Call("f", "{}"), Call("g", "{}")]),
        (call(s='</tool_call> "} \\'), "", [Call("f", json.dumps({"s": '</tool_call> "} \\'}))]),
        ('<tool_call>{"name":"f","arguments":{"a":{"b":[{}]}}}', "",
         [Call("f", '{"a":{"b":[{}]}}')]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "",
         [Call("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "",
         [Call("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', "", [Call("f", "{}")]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [Call("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"cut', "", [Call("f", '{"cut')]),
        (f"before\n{call('f')}\nafter", "before\nafter", [Call("f", "{}")]),
        # what is no call is text
        ("<tool_call>", "<tool_call>", []),
        ("a <tool_call> is a marker", "a <tool_call> is a marker", []),
        ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", []),
        ("<tool_call>{bad}</tool_call> x", "<tool_call>{bad}</tool_call> x", []),
        ('<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>', []),
        ('<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
        ("a < b <tool", "a < b <tool", []),
        ('<tool_call>{"name": "\\q", "arguments": {}}',
         '<tool_call>{"name": "\\q", "arguments": {}}', []),
        (f"<tool_call>{call()}", "<tool_call>", [Call("f", "{}")]),
    ],
)  # fmt: skip
def test_what_a_whole_text_says(text, content, calls):
    assert whole(text) == (content, calls)
    assert streamed(text, range(len(text))) == (content, calls)


def streamed(text, cuts):
    """The same, put together from deltas of the text cut there."""
    ids = count()
    stream = ToolStream(parallel=True, new_id=lambda: f"call_{next(ids)}")
    content, calls = "", []
    edges = [0, *sorted(set(cuts)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    for i, piece in enumerate(pieces):
        more, deltas = stream.add(piece, is_whole=i == len(pieces) - 1)
        content += more
        for delta in deltas:
            if delta.id is not None:
                assert delta.index == len(calls), "in order, and named once"
                assert delta.id == f"call_{delta.index}"
                calls.append(Call(delta.name, ""))
            calls[delta.index] = Call(
                calls[delta.index].name, calls[delta.index].arguments + delta.arguments
            )
    return content, calls


PIECES = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<tool", "_call>", "</", "\n", "  ", "text", "é日", "{", "}",
        '{"name": "f", "arguments": ', '{"a": 1}', '{"s": "}<tool_call>\\""}', '"', "\\", ",",
        '{"name": "\\u00e9\\q"',
        '{"name": "g"}', '{"arguments": {}, "name": "h"}', call("k", x=[1, {"y": None}]), call(),
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=9).map("".join), st.lists(st.integers(0, 200), max_size=6))
def test_cutting_a_text_anywhere_changes_nothing(text, cuts):
    """Deterministic properties of a pure function: any text that breaks them is a bug."""
    want = whole(text)
    assert streamed(text, [c for c in cuts if c <= len(text)]) == want
    assert streamed(text, range(len(text))) == want


@given(st.lists(PIECES, max_size=9).map("".join))
def test_what_is_reported_only_grows(text):
    before = parse("", is_whole=False)
    for end in range(len(text) + 1):
        now = parse(text[:end], is_whole=False)
        assert now.content.startswith(before.content)
        assert len(now.calls) >= len(before.calls)
        for old, new in zip(before.calls, now.calls, strict=False):
            assert new.name == old.name
            assert new.arguments.startswith(old.arguments)
        before = now


def test_text_is_not_held_up_by_what_cannot_be_a_call():
    for text in ("a < b", "<b>bold</b>", "<tool_kit>", "<tool_call> x", "1 <= 2"):
        assert parse(text, is_whole=False).content == text


def test_nesting_without_end_is_text_too():
    text = '<tool_call>{"a": ' + "[" * 5000
    assert whole(text) == (text, [])
    found = parse('<tool_call>{"name": "f", "arguments": {"a": ' + "[" * 5000, is_whole=False)
    assert found.calls[0].name == "f"


def test_arguments_are_shown_as_they_come():
    parsed = parse('<tool_call>{"name": "f", "arguments": {"a": "b', is_whole=False)
    assert parsed.calls == (Call("f", '{"a": "b'),)
    assert parsed.num_complete == 0


def test_without_parallel_calls_the_first_is_the_last():
    stream = ToolStream(parallel=False, new_id=lambda: "id")
    content, deltas = stream.add(f"x {call('f')} y {call('g')} z", is_whole=False)
    assert content == "x"
    assert [d.name for d in deltas] == ["f"]
    assert stream.is_done
    assert stream.add("more", is_whole=True) == ("", [])
