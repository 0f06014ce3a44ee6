"""Anthropic's messages, through its own client and on the wire."""

import anthropic
import httpx
import pytest
from conftest import Running
from test_refusals import refused
from test_tools import OSLO, TIME

TOOLS = [
    {
        "name": "weather",
        "description": "The weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
        "cache_control": {"type": "ephemeral"},
    },
    {"name": "clock", "input_schema": {"type": "object", "properties": {}}},
]


@pytest.fixture
def client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def say(client, text, **fields):
    messages = [{"role": "user", "content": f"say:{text}"}]
    return client.messages.create(
        **({"model": "echo", "max_tokens": 300, "messages": messages} | fields)
    )


def test_a_whole_answer(client):
    fields = {"temperature": 0.5, "top_k": 5, "top_p": 0.9}  # its newest client has none of them
    answer = say(client, "Hello.", metadata={"user_id": "u"}, extra_body=fields)
    assert answer.id.startswith("msg_")
    assert (answer.role, answer.type, answer.model) == ("assistant", "message", "echo")
    assert [(b.type, b.text) for b in answer.content] == [("text", "Hello.")]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.output_tokens == len("Hello.") + 1
    assert say(client, "Hello.", max_tokens=2).stop_reason == "max_tokens"


def test_input_is_counted_with_and_without_what_was_cached(client):
    messages = [{"role": "user", "content": "remember " + "0123456789" * 9 + " say:x"}]
    fields = {"model": "echo", "messages": messages}
    total = client.messages.count_tokens(**fields).input_tokens
    say(client, "", **fields)
    usage = say(client, "", **fields).usage
    assert usage.cache_read_input_tokens > 0
    assert usage.input_tokens + usage.cache_read_input_tokens == total
    with_tools = client.messages.count_tokens(**fields, tools=TOOLS).input_tokens
    assert with_tools > total


def test_a_stop_sequence_is_named(client):
    answer = say(client, "one END two", stop_sequences=["no", "END"])
    assert answer.content[0].text == "one "
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")


@pytest.mark.parametrize("streams", [False, True])
def test_text_and_calls(client, streams):
    fields = {"model": "echo", "max_tokens": 300, "tools": TOOLS}
    messages = [{"role": "user", "content": f"say:Both.\n{OSLO}\n{TIME}"}]
    if streams:
        with client.messages.stream(**fields, messages=messages) as stream:
            answer = stream.get_final_message()
    else:
        answer = client.messages.create(**fields, messages=messages)
    text, weather, clock = answer.content
    assert text.text == "Both."
    assert (weather.name, weather.input) == ("weather", {"city": "Oslo"})
    assert (clock.name, clock.input) == ("clock", {})
    assert weather.id.startswith("toolu_")
    assert answer.stop_reason == "tool_use"
    assert answer.usage.output_tokens > 50


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"type": "any"}, {"weather", "clock"}),
        ({"type": "tool", "name": "clock"}, {"clock"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"weather", "clock"}),
    ],
)
def test_forced_calls(client, choice, names):
    answer = say(client, "No.", tools=TOOLS, tool_choice=choice)
    assert answer.stop_reason == "tool_use"
    assert {b.type for b in answer.content} == {"tool_use"}
    assert {b.name for b in answer.content} <= names
    if choice.get("disable_parallel_tool_use") or choice["type"] == "tool":
        assert len(answer.content) == 1


def test_events_are_those_of_the_api(server: Running):
    body = {
        "max_tokens": 300,
        "messages": [{"role": "user", "content": f"say:Hi. {OSLO}"}],
        "tools": TOOLS,
        "stream": True,
    }
    response = server.client.post("/v1/messages", json=body)
    names = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
    kinds = [n for i, n in enumerate(names) if n != "content_block_delta" or names[i - 1] != n]
    assert kinds == [
        "message_start",
        "content_block_start", "content_block_delta", "content_block_stop",
        "content_block_start", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert "[DONE]" not in response.text


def test_what_a_coding_agent_sends(server: Running):
    """Cached system blocks, thinking, tool results with text after them, unknown beta fields."""
    body = {
        "model": "echo",
        "max_tokens": 300,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": []},
        "metadata": {"user_id": "u"},
        "tools": TOOLS,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [{"type": "text", "text": "gone"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "say:So rain."},
                ],
            },
        ],
    }
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x"}
    answer = server.client.post("/v1/messages?beta=true", json=body, headers=headers).json()
    assert answer["content"] == [{"type": "text", "text": "So rain."}]


def test_the_assistants_last_words_are_continued(client):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "say:abc"}]
    assert say(client, "", messages=messages).content[0].text == "abc"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
        ({"temperature": 1.5}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [
            {"type": "tool_result", "tool_use_id": "t", "content": "x"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": [{"type": "thinking"}]}]}, "messages"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
    ],
)  # fmt: skip
def test_bad_fields(server: Running, fields, param):
    body = {"max_tokens": 5, "messages": [{"role": "user", "content": "say:x"}]} | fields
    refused(server.client.post("/v1/messages", json=body), 400, param)


def test_the_client_understands_refusals(server: Running, client):
    with pytest.raises(anthropic.NotFoundError):
        say(client, "x", model="claude")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        say(client, "x", max_tokens=9999)
    failing = {"role": "user", "content": "fail say:x"}
    with pytest.raises(anthropic.APIStatusError), client.messages.stream(
        model="echo", max_tokens=5, messages=[failing]
    ) as stream:  # fmt: skip
        stream.get_final_message()
    assert isinstance(server.client, httpx.Client)
