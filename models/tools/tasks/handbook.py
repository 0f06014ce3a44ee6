"""What the bundled model is taught about this project: handbook.txt, read into entries.

The more ways a thing is asked for, the better one that was never trained on is understood: noun
and verb phrases are put into frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NOUN_FRAMES = (
    "What is {x}?",
    "What exactly is {x}?",
    "Explain {x}.",
    "Can you explain {x}?",
    "Please explain {x} to me.",
    "What does {x} mean?",
    "What is meant by {x}?",
    "Tell me about {x}.",
    "Describe {x}.",
    "What can you tell me about {x}?",
    "Give me a short explanation of {x}.",
    "I do not understand {x}.",
    "I have a question about {x}.",
    "Say something about {x}.",
    "{x}?",
    "What's {x}?",
    "Could you explain {x}?",
    "I want to know what {x} is.",
    "Do you know what {x} is?",
    "How would you explain {x}?",
    "Define {x}.",
    "Help me understand {x}.",
    "What should I know about {x}?",
    "In short, what is {x}?",
)
VERB_FRAMES = (
    "How do I {x}?",
    "How can I {x}?",
    "How to {x}?",
    "How does one {x}?",
    "Tell me how to {x}.",
    "Show me how to {x}.",
    "I want to {x}.",
    "I want to {x}. How?",
    "What do I have to do to {x}?",
    "What must I do to {x}?",
    "Is there a way to {x}?",
    "Is it possible to {x}?",
    "Can I {x}?",
    "What is the best way to {x}?",
    "I would like to {x}. What do I do?",
    "Explain how to {x}.",
    "How do you {x}?",
    "How would I {x}?",
    "I need to {x}.",
    "Help me {x}.",
    "What's the way to {x}?",
    "Could you tell me how to {x}?",
    "Do you know how to {x}?",
    "What is needed to {x}?",
    "What can I do to {x}?",
    "I am trying to {x}.",
    "What if I want to {x}?",
    "Where do I begin if I want to {x}?",
)
FRAMES = {"?": ("{x}",), "=": NOUN_FRAMES, "!": VERB_FRAMES}


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to know: a word that a right answer contains, answers, and ways to ask."""

    keyword: str
    answers: tuple[str, ...]
    questions: tuple[str, ...]


def read_entries(text: str) -> tuple[Entry, ...]:
    """The entries of a text in the format that handbook.txt explains."""
    blocks = text.partition("\n@ ")[2].split("\n@ ")
    return tuple(_entry(block.splitlines()) for block in blocks)


def _entry(lines: list[str]) -> Entry:
    keyword, *rest = lines
    answers = [line for line in rest if line[:1] not in FRAMES]
    questions = [
        frame.format(x=phrase.strip())
        for line in rest
        for frame in FRAMES.get(line[:1], ())
        for phrase in line[1:].split("|")
    ]
    return Entry(keyword, tuple(answers), tuple(dict.fromkeys(questions)))


HANDBOOK = read_entries(Path(__file__).with_suffix(".txt").read_text(encoding="utf-8"))
