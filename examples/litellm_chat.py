"""A chat and a stream, through LiteLLM.

pip install litellm
python examples/litellm_chat.py http://127.0.0.1:8000
"""

import sys

import litellm

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
fields = {
    "model": "openai/turbosparse-tiny",
    "api_base": f"{url}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "What is activation sparsity?"}],
    "max_tokens": 60,
}
print(litellm.completion(**fields).choices[0].message.content)
chunks = litellm.completion(**fields, stream=True)
print("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
