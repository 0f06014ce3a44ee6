"""What a task makes: a question with its answer, and how an answer is judged."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Message = dict[str, object]  # as OpenAI's API has it: role, content, perhaps tool_calls
Tool = dict[str, object]
HELD_OUT_SHARE = 20  # one combination of operands in so many is never trained on


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question, its answer, and what a grader looks for in the answer."""

    question: str
    answer: str
    expected: str = ""
    held_out: bool = False
    grade: str = "contains"


@dataclass(frozen=True, slots=True)
class Case:
    """A question of the exam: what a client would send, and what should come back."""

    task: str
    messages: list[Message]
    expected: str
    grade: str
    tools: list[Tool] = field(default_factory=list[Tool])

    def as_json(self) -> dict[str, object]:
        tools = {"tools": self.tools} if self.tools else {}
        return {
            "task": self.task,
            "messages": self.messages,
            **tools,
            "expected": self.expected,
            "grade": self.grade,
        }


OPENINGS = ("Please tell me: ", "Quick question: ", "Hello! ", "Hi, ", "And ", "So: ", "OK. ")
Task = Callable[[random.Random], Exchange]


def is_held_out(*operands: object, share: int = HELD_OUT_SHARE) -> bool:
    """Whether a question with these operands belongs to the exam: a fixed hash, no state."""
    digest = 0
    for character in repr(operands):
        digest = (digest * 131 + ord(character)) % 1_000_003
    return digest % share == 0


def ask(rng: random.Random, *forms: str, **values: object) -> str:
    """One of the forms, filled; at times in the careless ways in which people write."""
    return styled(rng, rng.choice(forms).format(**values))


def styled(rng: random.Random, text: str) -> str:
    style = rng.random()
    if style < 0.15:
        return text.lower()
    if style < 0.25:
        return text.rstrip("?.!")
    if style < 0.4:
        return rng.choice(OPENINGS) + text
    return text
