"""A chat, a forced tool call and a JSON answer, with OpenAI's Python library.

pip install openai
python examples/openai_chat.py http://127.0.0.1:8000
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
model = client.models.list().data[0].id
question = {"role": "user", "content": "What is activation sparsity?"}

stream = client.chat.completions.create(
    model=model, messages=[question], max_tokens=60, stream=True
)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))

weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}},
            "required": ["city"],
        },
    },
}
answer = client.chat.completions.create(
    model=model, messages=[question], tools=[weather], tool_choice="required", max_tokens=200
)
call = answer.choices[0].message.tool_calls[0]
print(call.function.name, call.function.arguments)

schema = {
    "type": "object",
    "properties": {"sparse": {"type": "boolean"}},
    "required": ["sparse"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model=model,
    messages=[question],
    response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}},
    extra_body={"sparsity": {"report": True}},
    max_tokens=100,
)
print(answer.choices[0].message.content)
print(f"{answer.usage.active_fraction:.0%} of the neurons were computed")

print(client.responses.create(model=model, input="Who are you?", max_output_tokens=40).output_text)
