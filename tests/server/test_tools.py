"""Tool calls, forced and free, whole and streamed, and their results on the way back."""

import json

import openai
import pytest
from conftest import events

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
OSLO = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def functions(choice):
    return [(c["function"]["name"], c["function"]["arguments"])
            for c in choice["message"].get("tool_calls", [])]  # fmt: skip


def streamed(server, text, **fields):
    """(content, calls as (id, name, arguments), finish reasons, raw deltas) of a stream."""
    *chunks, done = events(server.chat(f"say:{text}", stream=True, tools=TOOLS, **fields))
    assert done == "[DONE]"
    content, calls, finishes, deltas = "", [], [], []
    for chunk in map(json.loads, chunks):
        [choice] = chunk["choices"]
        delta = choice["delta"]
        content += delta.get("content") or ""
        finishes += [choice["finish_reason"]] if choice["finish_reason"] else []
        for call in delta.get("tool_calls", []):
            deltas.append(call)
            if "id" in call:
                assert call["index"] == len(calls)
                calls.append([call["id"], call["function"]["name"], ""])
            calls[call["index"]][2] += call["function"]["arguments"]
    return content, calls, finishes, deltas


def test_a_call_that_the_model_chose(server):
    choice = server.say(f"I look.\n{OSLO}", tools=TOOLS)
    assert choice["message"]["content"] == "I look."
    assert functions(choice) == [("weather", '{"city": "Oslo"}')]
    assert choice["finish_reason"] == "tool_calls"
    [call] = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["type"] == "function"
    assert server.say(OSLO, tools=TOOLS)["message"]["content"] is None


def test_text_is_an_answer_too(server):
    choice = server.say("a <tool_ is no call", tools=TOOLS)
    assert choice["message"]["content"] == "a <tool_ is no call"
    assert choice["finish_reason"] == "stop"
    assert "tool_calls" not in choice["message"]
    assert server.say(OSLO)["message"]["content"] == OSLO, "without tools it is text"
    assert server.say(OSLO, tools=TOOLS, tool_choice="none")["message"]["content"] == OSLO


def test_streamed_as_openai_does(server):
    """`id`, `type` and `name` once, with empty arguments; then pieces."""
    content, calls, finishes, deltas = streamed(server, f"Both. {OSLO}\n{TIME}")
    assert content == "Both."
    assert [call[1:] for call in calls] == [["weather", '{"city": "Oslo"}'], ["clock", "{}"]]
    assert len({call[0] for call in calls}) == 2
    assert finishes == ["tool_calls"]
    firsts = [d for d in deltas if "id" in d]
    assert [d["function"] for d in firsts] == [
        {"name": "weather", "arguments": ""},
        {"name": "clock", "arguments": ""},
    ]
    assert all(set(d) == {"index", "function"} for d in deltas if "id" not in d)


def test_one_call_at_most_without_parallel_calls(server):
    choice = server.say(f"{OSLO}\n{TIME} and more", tools=TOOLS, parallel_tool_calls=False)
    assert functions(choice) == [("weather", '{"city": "Oslo"}')]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    _, calls, finishes, _ = streamed(server, f"{OSLO}\n{TIME}", parallel_tool_calls=False)
    assert [call[1] for call in calls] == ["weather"]
    assert finishes == ["tool_calls"]
    endless = server.chat(f"endless say:{OSLO}", tools=TOOLS, parallel_tool_calls=False)
    assert endless.json()["choices"][0]["finish_reason"] == "tool_calls"


def test_required_calls_whatever_the_model_would_say(server):
    choice = server.say("I will not call.", tools=TOOLS, tool_choice="required", max_tokens=300)
    assert choice["message"]["content"] is None
    assert functions(choice)
    for name, arguments in functions(choice):
        found = json.loads(arguments)
        assert (name, set(found)) in [("weather", {"city"}), ("clock", set())]
    choice = server.say(f"{OSLO}\n{TIME}", tools=TOOLS, tool_choice="required", max_tokens=300)
    assert functions(choice) == [("weather", '{"city": "Oslo"}'), ("clock", "{}")]
    _, calls, finishes, _ = streamed(server, OSLO, tool_choice="required", max_tokens=300)
    assert [call[1:] for call in calls] == [["weather", '{"city": "Oslo"}']]
    assert finishes == ["tool_calls"]


def test_a_named_tool_is_the_one_that_is_called(server):
    named = {"type": "function", "function": {"name": "clock"}}
    choice = server.say(OSLO, tools=TOOLS, tool_choice=named, max_tokens=300)
    [(name, arguments)] = functions(choice)
    assert (name, json.loads(arguments)) == ("clock", {})
    assert choice["finish_reason"] == "tool_calls"


def test_arguments_of_a_strict_tool_follow_their_schema_though_the_call_is_free(server):
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    assert server.say("No call.", tools=[strict])["message"]["content"] == "No call."
    told = 'x <tool_call>\n{"name": "weather", "arguments": {"country": 7}}\n</tool_call>'
    choice = server.say(told, tools=[strict], max_tokens=300)
    [(name, arguments)] = functions(choice)
    assert name == "weather"
    assert set(json.loads(arguments)) == {"city"}
    assert choice["message"]["content"].startswith("x")
    free = server.say(told, tools=[WEATHER], max_tokens=300)
    assert functions(free) == [("weather", '{"country": 7}')], "not strict: as the model wrote it"


def test_a_schema_and_tools_together(server):
    """The answer is of that form, or a call."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert server.say('{"a": 1}', tools=TOOLS, response_format=form)["message"]["content"] == (
        '{"a": 1}'
    )
    assert functions(server.say(OSLO, tools=TOOLS, response_format=form)) == [
        ("weather", '{"city": "Oslo"}')
    ]


def test_a_call_cut_short_is_shown_as_far_as_it_came(server):
    choice = server.say(OSLO, tools=TOOLS, max_tokens=50)
    assert choice["finish_reason"] == "length"
    assert functions(choice) == [("weather", '{"cit')]


def test_a_forced_call_cut_short_before_its_name_is_not_text(server):
    choice = server.say(OSLO, tools=TOOLS, tool_choice="required", max_tokens=20)
    assert choice["message"]["content"] == ""
    assert functions(choice) == []
    assert choice["finish_reason"] == "length"


CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "snow"}]},
    {"role": "user", "content": "say:So rain."},
]


def test_results_come_back_and_the_template_sees_them(server):
    body = {"messages": CONVERSATION, "tools": TOOLS}
    answer = server.client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "So rain."
    tokens = server.client.post("/tokenize", json=body).json()["tokens"]
    prompt = server.service.tokenizer.decode(tokens, skip_special_tokens=False)
    assert prompt.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert '"name": "clock"' in prompt
    assert f"<|im_start|>assistant\n{OSLO}<|im_end|>" in prompt
    assert (
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nsnow\n</tool_response><|im_end|>"
    ) in prompt


@pytest.mark.parametrize("streams", [False, True])
def test_the_official_client(server, streams):
    messages = [{"role": "user", "content": f"say:{OSLO}"}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        if streams:
            with client.chat.completions.stream(
                model="echo", messages=messages, tools=TOOLS, tool_choice="required"
            ) as stream:
                for _ in stream:
                    pass
                answer = stream.get_final_completion()
        else:
            answer = client.chat.completions.create(
                model="echo", messages=messages, tools=TOOLS, tool_choice="required"
            )
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
