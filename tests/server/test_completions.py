"""Text completions: a text, token ids, or a list of either."""

import json

import openai
import pytest
from conftest import events
from echo_engine import ids


def complete(server, prompt, **fields):
    response = server.client.post("/v1/completions", json={"prompt": prompt} | fields)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("say:abc", ["abc"]),
        (ids("say:abc"), ["abc"]),
        (["say:one", "say:two"], ["one", "two"]),
        ([ids("say:one"), ids("say:two")], ["one", "two"]),
    ],
)
def test_every_form_of_prompt(server, prompt, texts):
    answer = complete(server, prompt)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert [c["text"] for c in answer["choices"]] == texts
    assert [c["index"] for c in answer["choices"]] == list(range(len(texts)))


def test_a_text_begins_with_the_tokenizers_own_bos_and_ids_are_taken_as_they_are(server):
    assert complete(server, "say:a")["usage"]["prompt_tokens"] == len("say:a") + 1
    assert complete(server, ids("say:a"))["usage"]["prompt_tokens"] == len("say:a")


def test_choices_of_several_prompts_stand_together(server):
    answer = complete(server, ["say:x", "say:y"], n=2)
    assert [c["text"] for c in answer["choices"]] == ["x", "x", "y", "y"]


def test_streamed(server):
    body = {
        "prompt": ["say:one", "say:two"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, done = events(server.client.post("/v1/completions", json=body))
    assert done == "[DONE]"
    chunks = [json.loads(c) for c in chunks]
    for index, text in enumerate(["one", "two"]):
        mine = [
            c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == index
        ]
        assert "".join(c["text"] for c in mine) == text
        assert mine[-1]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_logprobs(server):
    found = complete(server, "say:abc", logprobs=2)["choices"][0]["logprobs"]
    assert found["tokens"] == ["a", "b", "c"]
    assert found["token_logprobs"] == [-0.5] * 3
    assert found["text_offset"] == [0, 1, 2]
    assert all(len(top) == 2 for top in found["top_logprobs"])
    assert complete(server, "say:abc", logprobs=0)["choices"][0]["logprobs"]["tokens"]


def test_the_official_client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.completions.create(model="echo", prompt="say:xyz", max_tokens=2)
        assert answer.choices[0].text == "xy"
        assert answer.choices[0].finish_reason == "length"
        assert [m.id for m in client.models.list()] == ["echo", "alias"]
        assert client.models.retrieve("echo").id == "echo"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
