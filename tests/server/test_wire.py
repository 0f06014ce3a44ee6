"""What every route owes its clients: an error object for what is no request, signs of life."""

import json

import pytest
from test_life import ENDLESS
from test_refusals import refused

from turbosparse.server import stream

POSTS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
]
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_request_is_refused_in_one_shape(server, path):
    for raw in (b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 50_000, b'{"a":' * 9000):
        refused(server.client.post(path, content=raw, headers=JSON), 400, None)
    refused(server.client.post(path, content=b"{}"), 415, None)
    refused(server.client.post(path, json={"x": "y" * 200_000}), 413, None)
    refused(server.client.get(path), 405, None)
    refused(server.client.post(f"{path}/nothing", json={}), 404, None)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}),
    ],
)
def test_nothing_is_left_behind_by_a_refusal(server, path, fields):
    """Refused at each stage: before admission, while encoding, by its length, by its grammar."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}
    for wrong in (
        {"model": "gpt-9"},
        {"sparsity": {"threshold": 1.0}},
        {"max_tokens": 9999, "max_output_tokens": 9999},
        {"guided_regex": "["},
        {"tools": [tool | tool["function"]], "tool_choice": "required"},
    ):
        response = server.client.post(path, json=fields | wrong)
        assert response.status_code in (200, 400, 404), response.text
    server.wait_idle()


def test_a_stream_that_waits_shows_signs_of_life(server, monkeypatch):
    monkeypatch.setattr(stream, "PING_SECONDS", 1)
    body = ENDLESS | {"stream": True, "n": 3, "stop": "never", "max_tokens": 90}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = list(response.iter_lines())
    assert any(line.startswith(": ping") for line in lines)
    assert lines[-2] == "data: [DONE]"
    for line in lines:
        if line.startswith("data: {"):
            json.loads(line[6:])
