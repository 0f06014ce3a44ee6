"""Chat completions as a client meets them: whole, streamed, through the official library."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from conftest import Running, events


def stream(server: Running, text: str, **fields) -> list[dict]:
    """The chunks of a streamed answer; what ends it has been checked."""
    response = server.chat(text, stream=True, **fields)
    assert response.status_code == 200, response.text
    *chunks, done = events(response)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def content(chunks: list[dict], index: int = 0) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index
    )


def test_a_whole_answer(server):
    answer = server.chat("say:Hello there.").json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "echo"
    assert answer["id"].startswith("chatcmpl-")
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello there.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    usage = answer["usage"]
    assert usage["completion_tokens"] == len("Hello there.") + 1  # and the end of the turn
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_streamed_answer_is_the_same_text(server):
    chunks = stream(server, "say:Hello there.")
    first, last = chunks[0], chunks[-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert content(chunks) == "Hello there."
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        (first["id"], first["created"], "echo", "chat.completion.chunk")
    }
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert not any("usage" in c for c in chunks), "nobody asked"


def test_stream_headers_keep_proxies_from_buffering(server):
    headers = server.chat("say:x", stream=True).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"


def test_usage_comes_last_and_only_when_asked(server):
    chunks = stream(server, "say:abc", stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert all(c["usage"] is None for c in chunks[:-1])
    assert stream(server, "say:abc", stream_options={"include_usage": False})[-1]["choices"]


def test_usage_so_far_in_every_chunk_for_load_generators(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(server, "slowly say:abc", stream_options=options)
    so_far = [c["usage"]["completion_tokens"] for c in chunks]
    assert so_far == sorted(so_far)
    assert (so_far[0], so_far[-1]) == (0, 4)
    assert len(set(so_far)) > 2, "it grows"
    alone = stream(server, "say:abc", stream_options={"continuous_usage_stats": True})
    assert all("usage" not in c for c in alone), "as vLLM: only beside include_usage"


def test_a_prompt_seen_before_is_reported_as_cached(server):
    text = "remember this: " + "0123456789" * 10 + " say:x"
    server.chat(text)
    cached = server.chat(text).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= 96
    assert cached % 16 == 0, "whole pages are shared"


@pytest.mark.parametrize("text", ["naïve café", "日本語です", "👩‍👩‍👧 family", "mixed ñ 日 👍 end"])
def test_no_chunk_ever_holds_half_a_character(server, text):
    chunks = stream(server, f"say:{text}")
    assert content(chunks) == text
    assert not any("\ufffd" in content([c]) for c in chunks)


def test_a_character_that_never_becomes_whole_is_shown_as_unknown(server):
    assert server.say("né", max_tokens=2)["message"]["content"] == "n\ufffd"
    assert content(stream(server, "say:né", max_tokens=2)) == "n\ufffd"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("STOP", "one "),
        (["nothing", "two"], "one STOP "),
        (["STOP t", "STOP"], "one "),  # the shorter is complete first
        ("one", ""),
        ("wo th", "one STOP t"),
        ("threeX", "one STOP two three"),  # begun, never finished: it is text
    ],
)
def test_stop_strings_span_tokens_and_never_leak(server, stop, expected, streamed):
    text = "one STOP two three"
    if streamed:
        chunks = stream(server, f"say:{text}", stop=stop)
        assert content(chunks) == expected
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    else:
        choice = server.say(text, stop=stop)
        assert choice["message"]["content"] == expected
        assert choice["finish_reason"] == "stop"


def test_a_stop_string_ends_an_endless_answer(server):
    answer = server.chat("endless say:abc.", stop=".", max_tokens=300).json()
    assert answer["choices"][0]["message"]["content"] == "abc"
    assert answer["usage"]["completion_tokens"] < 300
    server.wait_idle()


def test_the_stop_string_stays_if_asked(server):
    choice = server.say("one STOP two", stop="STOP", include_stop_str_in_output=True)
    assert choice["message"]["content"] == "one STOP"


def test_length_ends_an_answer(server):
    choice = server.say("abcdef", max_tokens=3)
    assert choice["message"]["content"] == "abc"
    assert choice["finish_reason"] == "length"
    assert server.say("abcdef", max_completion_tokens=2)["message"]["content"] == "ab"


def test_stop_token_ids_end_it_and_are_not_shown(server):
    c = server.service.tokenizer.encode("c", add_special_tokens=False)
    assert server.say("abcdef", stop_token_ids=c)["message"]["content"] == "ab"


def test_min_tokens_and_ignore_eos_reach_the_engine(server):
    assert (
        server.chat("say:ab", ignore_eos=True, max_tokens=7).json()["usage"]["completion_tokens"]
        == 7
    )
    assert (
        server.chat("say:ab", min_tokens=5, max_tokens=9).json()["usage"]["completion_tokens"] == 6
    )


def test_several_choices(server):
    answer = server.chat("say:abc", n=3).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert {c["message"]["content"] for c in answer["choices"]} == {"abc"}
    assert answer["usage"]["completion_tokens"] == 12
    chunks = stream(server, "say:abc", n=3, seed=2**63 - 1)
    assert [content(chunks, i) for i in range(3)] == ["abc"] * 3
    finished = [c["choices"][0]["finish_reason"] for c in chunks]
    assert finished.count("stop") == 3


def test_logprobs_one_entry_a_token(server):
    choice = server.say("né", logprobs=True, top_logprobs=3)
    entries = choice["logprobs"]["content"]
    assert [e["bytes"] for e in entries] == [[0x6E], [0xC3], [0xA9]]
    assert entries[0]["token"] == "n"
    assert entries[0]["logprob"] == -0.5
    assert len(entries[0]["top_logprobs"]) == 3
    assert entries[0]["top_logprobs"][2]["logprob"] == -9999.0, "JSON has no infinity"
    chunks = stream(server, "say:né", logprobs=True)
    streamed = [
        e for c in chunks[1:] for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [e["bytes"] for e in streamed] == [[0x6E], [0xC3], [0xA9]]
    assert server.say("a", logprobs=False)["logprobs"] is None


def test_content_in_parts_and_every_role(server):
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "say:"}, {"type": "text", "text": "p"}],
        },
        {"role": "assistant", "content": "p"},
        {"role": "user", "content": "say:more"},
    ]
    body = {"model": "alias", "messages": messages}
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "more"
    assert answer["model"] == "alias"


def test_bookkeeping_unknown_and_null_fields_are_accepted(server):
    fields = dict.fromkeys(
        ["temperature", "stop", "n", "seed", "logit_bias", "max_tokens", "tools", "response_format"]
    )
    fields |= {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}
    fields |= {
        "some_future_field": [1, {}],
        "response_format": {"type": "text"},
        "tool_choice": "none",
    }
    assert server.say("ok", **fields)["message"]["content"] == "ok"


def test_many_at_once_each_get_their_own(server):
    texts = [f"answer number {i} with ünïcödé" for i in range(32)]
    with ThreadPoolExecutor(32) as pool:
        streams = list(pool.map(lambda t: content(stream(server, f"say:{t}")), texts))
    assert streams == texts
    server.wait_idle()


def test_the_official_client(server):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    messages = [{"role": "user", "content": "say:from the library"}]
    answer = client.chat.completions.create(model="echo", messages=messages)
    assert answer.choices[0].message.content == "from the library"
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    chunks = list(
        client.chat.completions.create(
            model="echo", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == (
        "from the library"
    )
    assert chunks[-1].usage.completion_tokens == len("from the library") + 1
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gpt-9", messages=messages)
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=[])
    assert refused.value.param == "messages"
    client.close()


async def test_the_official_client_asynchronously(server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        text = ""
        async with await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "say:ábc"}], stream=True
        ) as chunks:
            async for chunk in chunks:
                text += chunk.choices[0].delta.content or ""
    assert text == "ábc"
