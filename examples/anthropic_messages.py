"""A streamed answer and a forced tool call, with Anthropic's Python library.

pip install anthropic
python examples/anthropic_messages.py http://127.0.0.1:8000
"""

import sys

from anthropic import Anthropic

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
client = Anthropic(base_url=url, api_key="none")
fields = {
    "model": "turbosparse-tiny",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": "What is activation sparsity?"}],
}
with client.messages.stream(**fields) as stream:
    print("".join(stream.text_stream))

weather = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}},
        "required": ["city"],
    },
}
answer = client.messages.create(**fields, tools=[weather], tool_choice={"type": "any"})
print(answer.stop_reason, answer.content[0].input)
