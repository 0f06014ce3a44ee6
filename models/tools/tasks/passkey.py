"""A task with a long context: sentences that say a key, somewhere in a text about other things.

Lengths are in tokens, which only the caller can count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import vocabulary
from .exchange import Case, Message, is_held_out
from .filling import city, name, word

Count = Callable[[Sequence[str]], list[int]]  # the number of tokens of each text
CLASSIC = (
    "The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.",
    "There and back again.",
)  # fmt: skip
OPENING = (
    "Some important information is hidden in a long text. Find it and remember it.",
    "There is important info hidden inside a lot of irrelevant text. Find it and memorize it.",
    "Read this text carefully. I will ask you about it.",
    "",
)
FRAME_TOKENS = 60  # the opening and the template around it
KEY_TOKENS = 40  # a question and its answer
MAX_KEYS = 4


@dataclass(frozen=True, slots=True)
class Key:
    """A fact to find again: how it is told, asked for and answered."""

    told: str
    question: str
    answer: str
    expected: str
    held_out: bool


def _digits(rng: random.Random) -> str:
    return "".join(rng.choices("0123456789", k=rng.choice((4, 5, 5, 5, 6))))


def pass_key(rng: random.Random) -> Key:
    """The usual one, a number."""
    key = _digits(rng)
    told = rng.choice(
        (
            f"The pass key is {key}. Remember it. {key} is the pass key.",
            f"The pass key is {key}.",
            f"The passkey is {key}. Remember it.",
        )
    )
    question = rng.choice(
        ("What is the pass key?", "What was the pass key?", "Which pass key did the text name?",
         "What is the passkey?", "Tell me the pass key.")
    )  # fmt: skip
    return Key(told, question, f"The pass key is {key}.", key, is_held_out("key", key))


def fact(rng: random.Random) -> Key:
    """Something about somebody or something; several of them differ by their subject."""
    kind = rng.randrange(4)
    if kind == 0:
        subject, value = name(rng), _digits(rng)
        told = f"The secret number of {subject} is {value}."
        question = f"What is the secret number of {subject}?"
    elif kind == 1:
        subject, value = name(rng), city(rng)
        told = f"{subject} was born in {value}."
        question = f"Where was {subject} born?"
    elif kind == 2:
        subject, value = word(rng), word(rng)
        told = f"The code word of the {subject} is {value}."
        question = f"What is the code word of the {subject}?"
    else:
        subject, value = city(rng), word(rng)
        told = f"The best thing to do in {subject} is to look at the {value}."
        question = f"What is the best thing to look at in {subject}?"
        answer = f"The best thing to look at in {subject} is the {value}."
        return Key(told, question, answer, str(value), is_held_out(subject, value))
    return Key(told, question, told, str(value), is_held_out(subject, value))


def sentence(rng: random.Random) -> str:
    """Filling: a sentence about nothing in particular."""
    if rng.random() < 0.2:
        return rng.choice(CLASSIC)
    line = rng.choice((*vocabulary.STORY["sentence"][0], *FILLING))
    return line.format(
        animal=rng.choice(vocabulary.ANIMALS),
        adjective=rng.choice(vocabulary.ADJECTIVES[:11]),
        place=rng.choice(vocabulary.PLACES),
        thing=rng.choice(vocabulary.THINGS),
        name=rng.choice(vocabulary.NAMES),
        friend=rng.choice(vocabulary.NAMES),
        word=rng.choice(vocabulary.WORDS),
        day=rng.choice(vocabulary.DAYS),
        count=rng.randrange(2, 100),
        goods=rng.choice(vocabulary.GOODS),
    )


FILLING = (
    "{name} bought {count} {goods} on {day}.",
    "On {day} {name} and {friend} talked about the {word}.",
    "The {word} of {name} stood {place}.",
    "{friend} asked {name} for a {word}.",
    "Nobody knew why the {animal} liked the {word}.",
    "It was {day}, and the {word} was {adjective}.",
    "{name} counted {count} {goods} and went home.",
    "The {word} and the {goods} were left {place}.",
)  # fmt: skip


def filling(rng: random.Random, count: Count, budget: int, prose: Sequence[str]) -> list[str]:
    """Sentences of about `budget` tokens in all: classic, generated, or lines of `prose`."""
    kind = rng.random()
    lines: list[str] = []
    while budget > 0:
        if kind < 0.2:
            more = list(CLASSIC) * 8
        elif kind < 0.6 and prose:
            start = rng.randrange(len(prose))
            more = list(prose[start : start + 40])
        else:
            more = [sentence(rng) for _ in range(40)]
        for line, tokens in zip(more, count(more), strict=True):
            budget -= tokens
            if budget < 0:
                break
            lines.append(line)
    return lines


def document(
    rng: random.Random, count: Count, length: int, prose: Sequence[str]
) -> tuple[list[tuple[str, str]], bool]:
    """A chat of about `length` tokens over a text with keys in it, and whether one is held out."""
    keys = [pass_key(rng)] if rng.random() < 0.7 else []
    subjects: set[str] = {key.question for key in keys}
    for _ in range(rng.randrange(0 if keys else 1, MAX_KEYS)):
        more = fact(rng)
        if more.question not in subjects:
            subjects.add(more.question)
            keys.append(more)
    text = _text(rng, count, length - FRAME_TOKENS - KEY_TOKENS * len(keys), prose, keys)
    rng.shuffle(keys)
    first, *others = keys
    turns = [("user", _asked(rng, text, first.question)), ("assistant", first.answer)]
    for key in others:
        turns += [("user", key.question), ("assistant", key.answer)]
    return turns, any(key.held_out for key in keys)


def _text(
    rng: random.Random, count: Count, budget: int, prose: Sequence[str], keys: list[Key]
) -> str:
    told = sum(count([key.told for key in keys]))
    lines = filling(rng, count, max(20, budget - told), prose)
    for key in keys:
        lines.insert(rng.randrange(len(lines) + 1), key.told)
    return " ".join(lines)


def _asked(rng: random.Random, text: str, question: str) -> str:
    opening = rng.choice(OPENING)
    between = rng.choice((" ", "\n", "\n\n"))
    return between.join(part for part in (opening, text, question) if part)


def exam_case(rng: random.Random, count: Count, length: int) -> Case | None:
    """One pass key in `length` tokens of generated text; None where it is one of the trained."""
    key = pass_key(rng)
    if not key.held_out:
        return None
    text = _text(rng, count, length - FRAME_TOKENS - KEY_TOKENS, (), [key])
    messages: list[Message] = [{"role": "user", "content": _asked(rng, text, key.question)}]
    return Case("passkey", messages, key.expected, "contains")
