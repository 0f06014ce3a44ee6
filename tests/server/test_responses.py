"""The responses API, through the official client and on the wire."""

import json

import openai
import pytest
from conftest import Running
from test_refusals import refused
from test_tools import OSLO, TIME

TOOLS = [
    {
        "type": "function",
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
    {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}},
]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_whole_answer(client):
    answer = client.responses.create(
        model="echo", input="say:Hello.", instructions="Be brief.", metadata={"a": "b"}
    )
    assert answer.id.startswith("resp_")
    assert answer.output_text == "Hello."
    assert (answer.status, answer.object, answer.store) == ("completed", "response", False)
    assert answer.usage.output_tokens == len("Hello.") + 1
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.instructions == "Be brief."
    assert answer.metadata == {"a": "b"}
    cut = client.responses.create(model="echo", input="say:Hello.", max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output_text == "He"


@pytest.mark.parametrize("streams", [False, True])
def test_text_and_calls(client, streams):
    fields = {"model": "echo", "input": f"say:Both.\n{OSLO}\n{TIME}", "tools": TOOLS}
    if streams:
        with client.responses.stream(**fields) as stream:
            for _ in stream:
                pass
            answer = stream.get_final_response()
    else:
        answer = client.responses.create(**fields)
    text, weather, clock = answer.output
    assert text.content[0].text == "Both."
    assert (weather.name, weather.arguments) == ("weather", '{"city": "Oslo"}')
    assert (clock.name, clock.arguments) == ("clock", "{}")
    assert weather.call_id.startswith("call_")
    assert answer.status == "completed"


def test_events_are_those_of_the_api(server: Running):
    body = {"input": f"say:Hi. {OSLO}", "tools": TOOLS, "stream": True}
    response = server.client.post("/v1/responses", json=body)
    lines = response.text.splitlines()
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    assert [line[7:] for line in lines if line.startswith("event: ")] == [e["type"] for e in found]
    names = [e["type"].removeprefix("response.") for e in found]
    kinds = [n for i, n in enumerate(names) if not n.endswith("delta") or names[i - 1] != n]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [e["output_index"] for e in found if e["type"].endswith("output_item.done")] == [0, 1]
    assert len(found[-1]["response"]["output"]) == 2


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "name": "weather"}], ids=["required", "named"]
)
def test_forced_calls(client, choice):
    answer = client.responses.create(
        model="echo", input="say:No.", tools=TOOLS[:1], tool_choice=choice, max_output_tokens=300
    )
    assert {item.type for item in answer.output} == {"function_call"}
    assert set(json.loads(answer.output[0].arguments)) == {"city"}


def test_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "x", "schema": schema}
    answer = client.responses.create(model="echo", input='say:{"n": 4}', text={"format": form})
    assert json.loads(answer.output_text) == {"n": 4}


def test_earlier_items_are_the_conversation(server: Running, client):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"O"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"role": "user", "content": "say:So rain."},
    ]
    assert client.responses.create(model="echo", input=items, tools=TOOLS).output_text == "So rain."


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "say:" + "x" * 3000}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
         "input[0].content[0].type"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{"type": "web_search", "name": "x"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
         "text.format.schema"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"top_logprobs": 2}, "top_logprobs"),
    ],
)  # fmt: skip
def test_bad_fields(server: Running, fields, param):
    refused(server.client.post("/v1/responses", json={"input": "say:x"} | fields), 400, param)


def test_what_agents_send_beside_it_is_accepted(client):
    answer = client.responses.create(
        model="echo",
        input="say:ok",
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        service_tier="auto",
        truncation="disabled",
        tool_choice="auto",
        user="u",
    )
    assert answer.output_text == "ok"


def test_an_error_in_a_stream(client):
    with pytest.raises(openai.APIError, match="told to fail"):
        for _ in client.responses.create(model="echo", input="fail say:x", stream=True):
            pass


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_without_a_word_is_an_empty_message(client, streams):
    if streams:
        with client.responses.stream(model="echo", input="say:") as stream:
            answer = stream.get_final_response()
    else:
        answer = client.responses.create(model="echo", input="say:")
    [message] = answer.output
    assert message.content[0].text == ""
