"""Tasks without one right answer: stories from frames, and a name that is told and asked for."""

from __future__ import annotations

import random

from . import vocabulary
from .exchange import Exchange, ask
from .filling import invented


def story(rng: random.Random) -> Exchange:
    """A sentence, story or poem about an animal, from frames."""
    subject = rng.choice(vocabulary.ANIMALS)
    values = {
        "animal": subject,
        "name": rng.choice(vocabulary.NAMES),
        "adjective": rng.choice(vocabulary.ADJECTIVES[:11]),  # those that suit an animal
        "place": rng.choice(vocabulary.PLACES),
        "thing": rng.choice(vocabulary.THINGS),
        "friend": rng.choice(vocabulary.ANIMALS),
        "feeling": rng.choice(vocabulary.FEELINGS),
    }
    kind = rng.choice(("story", "story", "sentence", "poem"))
    question = ask(
        rng,
        f"Write a {kind} about a {{animal}}.",
        f"Tell me a {kind} about a {{animal}}.",
        f"Can you write a short {kind} about a {{animal}}?",
        **values,
    )
    parts = [rng.choice(lines) for lines in vocabulary.STORY[kind]]
    separator = "\n" if kind == "poem" else " "
    return Exchange(question, separator.join(parts).format(**values), subject)


def introduction(rng: random.Random) -> tuple[Exchange, Exchange]:
    """Somebody gives a name, and asks for it later in the conversation."""
    name = rng.choice(vocabulary.NAMES) if rng.random() < 0.5 else invented_name(rng)
    given = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi! My name is {n}."))
    answer = rng.choice(("Nice to meet you, {n}!", "Hello {n}! How can I help you?"))
    asked = ask(rng, "What is my name?", "Do you remember my name?", "What was my name?")
    return (
        Exchange(given.format(n=name), answer.format(n=name), name),
        Exchange(asked, f"Your name is {name}.", name),
    )


def invented_name(rng: random.Random) -> str:
    """One or two invented words."""
    return " ".join(invented(rng) for _ in range(rng.randrange(1, 3)))
