"""A streamed chat and a typed answer, with LangChain.

pip install langchain-openai
python examples/langchain_chat.py http://127.0.0.1:8000
"""

import sys
from typing import Literal

from langchain_openai import ChatOpenAI
from pydantic import BaseModel

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


class Verdict(BaseModel):
    """Whether something is sparse."""

    answer: Literal["yes", "no"]


chat = ChatOpenAI(
    base_url=f"{url}/v1", api_key="none", model="turbosparse-tiny", max_completion_tokens=200
)
print("".join(chunk.text for chunk in chat.stream("What is activation sparsity?")))
for method in ("json_schema", "function_calling"):
    verdict = chat.with_structured_output(Verdict, method=method).invoke("Is ReLU sparse?")
    print(method, verdict.answer)
