"""Whatever a client sends: an OpenAI error object that names the field, and the server goes on."""

import httpx
import pytest

USER = [{"role": "user", "content": "say:x"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def called(arguments: str) -> dict:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


def tool(name: str, **function: object) -> dict:
    return {"type": "function", "function": {"name": name, **function}}


CALL = called("{}")


def refused(response: httpx.Response, status: int, param: str | None) -> dict:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"]
    return error


@pytest.fixture(autouse=True)
def _goes_on(server):
    yield
    assert server.say("still here")["message"]["content"] == "still here"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{**USER[0], "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
        ({"messages": [{**USER[0], "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
        ({"messages": [{**USER[0], "function_call": {}}]}, "messages[0].function_call"),
        ({"messages": [{"role": "tool", "tool_call_id": "c"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [called("[]")]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [called("{")]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ({"tools": [tool("f", parameters=7)]}, "tools[0].function.parameters"),
        ({"tools": [tool("f", parameters={"type": "x"})], "tool_choice": "required"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [tool("f")], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {
                "tools": [tool("f")],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
        ),
        (
            {"tools": [tool("f")], "tool_choice": "required", "guided_regex": "a"},
            "guided_regex",
        ),
        ({"tools": [tool("f")], "regex": "a"}, "regex"),
        ({"tools": [tool("f")], "tool_choice": "required", "min_tokens": 3}, "min_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"guided_regex": "[a-"}, "guided_regex"),
        ({"guided_regex": "(" * 5000 + ")" * 5000}, "guided_regex"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
        ({"guided_grammar": "root ::= nothing"}, "guided_grammar"),
        ({"ebnf": "start: nothing"}, "ebnf"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"regex": "a", "min_tokens": 1}, "min_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
        ({"continue_final_message": True}, "messages"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ({"sparsity": {"mode": "fast"}}, "sparsity.mode"),
        ({"sparsity": {"threshold": 0.5}}, "sparsity.threshold"),
        ({"sparsity": {"mode": "exact", "threshold": 0.5}}, "sparsity.threshold"),
        ({"sparsity": {"mode": "approximate"}}, "sparsity.threshold"),
        ({"sparsity": {"attention": "some"}}, "sparsity.attention"),
        ({"sparsity": {"attention": "gate"}}, "sparsity.attention"),
        ({"sparsity": {"attention": "bound", "mode": "exact"}}, "sparsity.attention"),
        ({"sparsity": {"attention": "bound", "page_budget": 0}}, "sparsity.page_budget"),
        ({"sparsity": {"attention": "bound", "page_budget": 63}}, "sparsity.page_budget"),
        ({"sparsity": {"attention": "bound", "page_budget": 2001}}, "sparsity.page_budget"),
        ({"sparsity": {"attention": "bound", "page_share": 0}}, "sparsity.page_share"),
        ({"sparsity": {"attention": "full", "page_share": 0.5}}, "sparsity.page_share"),
        ({"sparsity": {"page_budget": 512}}, "sparsity.page_budget"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["x"] * 20}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [7]}, "stop[0]"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"sparsity": {"mode": "approximate", "threshold": 1e300}}, "sparsity.threshold"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_fields_of_a_chat(server, fields, param):
    body = {"model": "echo", "messages": USER} | fields
    response = server.client.post(CHAT, json=body)
    assert refused(response, 400, param)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{}]),
        ("json_schema", "{}"),
        ("guided_whitespace_pattern", " *"),
        ("echo", True),
        ("reasoning_effort", "high"),
        ("audio", {}),
        ("modalities", ["text", "audio"]),
        ("chat_template", "x"),
        ("use_beam_search", True),
        ("bad_words", ["x"]),
        ("prompt_logprobs", 1),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_by_name(server, name, value):
    error = refused(server.chat("say:x", **{name: value}), 400, name)
    assert name in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "echo": "yes"}, "echo"),
        ({"prompt": "x", "tools": [{}]}, "tools"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": ["x", "say:" + "y" * 2100]}, "prompt[1]"),
    ],
)
def test_bad_fields_of_a_completion(server, fields, param):
    refused(server.client.post(TEXT, json=fields), 400, param)


def test_a_prompt_over_the_context(server):
    error = refused(server.chat("say:" + "x" * 2100), 400, "messages")
    assert error["code"] == "context_length_exceeded"
    assert "2000" in error["message"], "the limit is said"
    error = refused(server.chat("say:x", max_tokens=2000), 400, "max_tokens")
    assert error["code"] == "context_length_exceeded"
    refused(server.chat("say:x" + "y" * 20_000), 400, "messages")  # encoded on a thread


def test_a_model_that_is_not_served(server):
    assert refused(server.chat("x", model="gpt-9"), 404, "model")["code"] == "model_not_found"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b"[" * 50_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    ],
)
def test_bodies_that_are_no_request(server, raw):
    response = server.client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    refused(response, 400, None)


HALF = b"\\ud800"  # of a surrogate pair


@pytest.mark.parametrize(
    ("path", "raw", "param"),
    [
        (
            CHAT,
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            "temperature",
        ),
        (CHAT, b'{"messages": [{"role": "user", "content": "HALF"}]}', "messages[0].content"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "regex": "HALF"}', "regex"),
        (CHAT, b'{"messages": [{"role": "user", "content": "x"}], "new": {"HALF": 1}}', "new"),
        (TEXT, b'{"prompt": ["x", "\xed\xa0\x80"]}', "prompt[1]"),
        ("/v1/responses", b'{"input": "x", "metadata": {"a": "HALF"}}', "metadata.a"),
        ("/tokenize", b'{"prompt": "HALF"}', "prompt"),
        (
            CHAT,
            b'{"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function",'
            b'"function": {"name": "f", "arguments": "{\\"a\\": \\"\\HALF\\"}"}}]}]}',
            "messages",
        ),
    ],
)
def test_what_json_can_say_and_text_cannot(server, path, raw, param):
    raw = raw.replace(b"HALF", HALF)
    response = server.client.post(path, content=raw, headers={"content-type": "application/json"})
    refused(response, 400, param)


def test_an_emoji_may_be_escaped(server):
    raw = b'{"messages": [{"role": "user", "content": "say:\\ud83d\\ude00"}]}'
    response = server.client.post(CHAT, content=raw, headers={"content-type": "application/json"})
    assert response.json()["choices"][0]["message"]["content"] == "\U0001f600"


def test_a_body_that_is_too_large(server):
    refused(server.client.post(CHAT, json={"messages": USER, "x": "y" * 200_000}), 413, None)

    def chunks():
        for _ in range(50):
            yield b" " * 10_000

    headers = {"content-type": "application/json"}
    refused(server.client.post(CHAT, content=chunks(), headers=headers), 413, None)


def test_fifty_megabytes(server):
    body = b'{"messages": [{"role": "user", "content": "' + b"x" * (50 << 20) + b'"}]}'
    try:
        response = server.client.post(
            CHAT, content=body, headers={"content-type": "application/json"}
        )
    except httpx.WriteError:
        return  # refused and closed before it was sent: what a server may do
    refused(response, 413, None)


def test_a_body_of_another_type(server):
    refused(server.client.post(CHAT, data={"messages": "x"}), 415, None)
    refused(server.client.post(CHAT, content=b"{}"), 415, None)


def test_routes_and_methods_that_are_not_there(server):
    refused(server.client.get("/v1/nothing"), 404, None)
    response = server.client.get(CHAT)
    refused(response, 405, None)
    assert response.headers["allow"] == "POST"


def test_every_answer_has_a_request_id(server):
    assert (
        server.client.get("/health", headers={"X-Request-Id": "mine"}).headers["x-request-id"]
        == "mine"
    )
    assert server.client.get("/v1/nothing").headers["x-request-id"]
