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
        assert [m.id for m in client.models.list()] == ["echo", "alias", "turbosparse-tiny"]
        assert client.models.retrieve("echo").id == "echo"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


# The prompt's own tokens: what an evaluation reads.


def test_echo_puts_the_prompt_before_the_answer(server):
    assert complete(server, "say:abc", echo=True)["choices"][0]["text"] == "say:abcabc"
    answer = complete(server, [ids("say:a"), ids("say:b")], echo=True, n=2)
    assert [c["text"] for c in answer["choices"]] == ["say:aa", "say:aa", "say:bb", "say:bb"]


def test_echo_alone_generates_nothing(server):
    answer = complete(server, "say:abc", echo=True, max_tokens=0)
    assert answer["choices"][0]["text"] == "say:abc"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


def test_the_prompts_tokens_are_scored_with_echo(server):
    """Place by place; the first follows nothing. The engine's score says where it was."""
    prompt = ids("say:né")
    found = complete(server, prompt, echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert found["token_logprobs"] == [None, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -0.5]
    assert found["tokens"][:5] == ["s", "a", "y", ":", "n"]
    assert found["text_offset"][:5] == [0, 1, 2, 3, 4]
    assert found["top_logprobs"][0] is None
    first = server.service.tokenizer.token_bytes(0).decode()
    assert found["top_logprobs"][1] == {"a": -1.0, first: -0.25}, "the likeliest, and its own"
    alone = complete(server, prompt, echo=True, logprobs=1, max_tokens=0)["choices"][0]["logprobs"]
    assert alone["token_logprobs"] == found["token_logprobs"][:-1]


def test_every_prompt_of_a_list_is_scored(server):
    """Longer than a step's budget, so that scores come in parts; and a prefix that is cached."""
    texts = ["say:" + "x" * 700, "say:" + "x" * 600, "say:y"]
    answer = complete(server, [ids(t) for t in texts], echo=True, logprobs=0, max_tokens=1)
    for choice, text in zip(answer["choices"], texts, strict=True):
        scores = choice["logprobs"]["token_logprobs"]
        assert scores == [None, *(-float(i) for i in range(1, len(text))), -0.5]


def test_echo_streamed(server):
    body = {"prompt": "say:ab", "echo": True, "logprobs": 0, "stream": True}
    *chunks, _ = events(server.client.post("/v1/completions", json=body))
    choices = [json.loads(c)["choices"][0] for c in chunks]
    assert choices[0]["text"].startswith("say:ab")
    assert "".join(c["text"] for c in choices) == "say:abab"
    scores = [s for c in choices for s in c["logprobs"]["token_logprobs"]]
    assert scores == [None, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -0.5, -0.5]
    offsets = [o for c in choices for o in c["logprobs"]["text_offset"]]
    assert offsets == [0, 0, 1, 2, 3, 4, 5, 6, 7], "the opening token has no text"


def test_sparsity_is_reported_to_who_asks(server):
    usage = complete(server, "say:abc", sparsity={"report": True})["usage"]
    assert usage["active_fraction"] == pytest.approx(0.1)
    assert "active_fraction" not in complete(server, "say:abc", sparsity={"mode": "exact"})["usage"]
    fields = {"sparsity": {"mode": "approximate", "threshold": 0.5}}
    assert complete(server, "say:abc", **fields)["choices"][0]["text"] == "abc"
