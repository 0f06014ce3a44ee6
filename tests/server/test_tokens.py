"""Text to ids and back, the version, and a prefix cache that can be emptied."""

import pytest
from echo_engine import ids
from test_refusals import refused, tool

import turbosparse


def post(server, path, **body):
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_a_prompt_there_and_back(server):
    found = post(server, "/tokenize", prompt="né", return_token_strs=True)
    bos = server.service.tokenizer.backend.token_to_id("<s>")
    assert found["tokens"] == [bos, *ids("né")]
    assert found["count"] == 4
    assert found["max_model_len"] == 2000
    assert found["token_strs"] == ["<s>", "n", "\ufffd", "\ufffd"]
    assert post(server, "/detokenize", tokens=found["tokens"])["prompt"] == "<s>né"
    plain = post(server, "/tokenize", prompt="né", add_special_tokens=False)
    assert plain["tokens"] == ids("né")
    assert plain["token_strs"] is None


def test_a_conversation_is_what_a_chat_would_see(server):
    messages = [{"role": "user", "content": "say:x"}]
    found = post(server, "/tokenize", messages=messages)
    assert found["count"] == server.chat("say:x").json()["usage"]["prompt_tokens"]
    closed = post(server, "/tokenize", messages=messages, add_generation_prompt=False)
    assert closed["count"] < found["count"]
    with_tools = post(server, "/tokenize", messages=messages, tools=[tool("f")])
    assert with_tools["count"] > found["count"]


def test_a_template_is_given_what_the_client_adds(server):
    messages = [{"role": "user", "content": "x"}]
    found = post(server, "/tokenize", messages=messages, chat_template_kwargs={"mood": "glad"})
    text = post(server, "/detokenize", tokens=found["tokens"])["prompt"]
    assert text.startswith("mood: glad\n")


def test_the_assistants_last_words_are_continued(server):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "say:abc "}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    found = post(server, "/tokenize", messages=messages, **fields)
    text = post(server, "/detokenize", tokens=found["tokens"])["prompt"]
    assert text.endswith("<|im_start|>assistant\nsay:abc")
    answer = post(server, "/v1/chat/completions", messages=messages, **fields)
    assert answer["choices"][0]["message"]["content"] == "abc"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": [{"role": "bad", "content": "x"}]}, "messages[0].role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, 300]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
    ],
)
def test_bad_requests(server, path, body, param):
    refused(server.client.post(path, json=body), 400, param)


def test_another_model(server):
    for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": []})):
        refused(server.client.post(path, json={**body, "model": "gpt-9"}), 404, "model")


def test_the_version(server):
    assert server.client.get("/version").json() == {"version": turbosparse.__version__}


def test_the_prefix_cache_can_be_emptied(server):
    def cached():
        usage = server.chat("please remember " + "0123456789" * 10 + " say:x").json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    cached()
    assert cached() > 0
    assert server.client.post("/reset_prefix_cache").status_code == 200
    assert cached() == 0
