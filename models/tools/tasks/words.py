"""Tasks with words and lists: reverse, sort, count, spell; what comes next."""

from __future__ import annotations

import random

from . import vocabulary
from .exchange import Exchange, ask, is_held_out


def _chosen(rng: random.Random) -> tuple[list[str], str]:
    chosen = rng.sample(vocabulary.WORDS, rng.randrange(2, 7))
    return chosen, rng.choice((", ", ", ", " ")).join(chosen)


def reverse(rng: random.Random) -> Exchange:
    """A list of words, the last one first."""
    chosen, listing = _chosen(rng)
    question = ask(
        rng,
        "Reverse these words: {w}",
        "Say these words backwards: {w}",
        "Reverse the order of these words: {w}",
        "Reverse this list: {w}",
        w=listing,
    )
    answer = ", ".join(reversed(chosen))
    return Exchange(question, answer, answer, is_held_out("reverse", *chosen), "exact")


def sort(rng: random.Random) -> Exchange:
    """A list of words in alphabetical order; which words, not which order, is held out."""
    chosen, listing = _chosen(rng)
    question = ask(
        rng,
        "Sort these words: {w}",
        "Put these words in alphabetical order: {w}",
        "Sort this list: {w}",
        "Order these words from a to z: {w}",
        w=listing,
    )
    answer = ", ".join(sorted(chosen))
    return Exchange(question, answer, answer, is_held_out("sort", *sorted(chosen)), "exact")


def count(rng: random.Random) -> Exchange:
    """How many words a list has."""
    chosen, listing = _chosen(rng)
    question = ask(
        rng,
        "How many words are here: {w}",
        "Count these words: {w}",
        "Count the words: {w}",
        w=listing,
    )
    held_out = is_held_out("count", *chosen)
    return Exchange(
        question, f"There are {len(chosen)} words.", str(len(chosen)), held_out, "number"
    )


def spell(rng: random.Random) -> Exchange:
    """One word letter by letter, or two: only pairs are held out, each word is taught."""
    chosen = rng.sample(vocabulary.WORDS, rng.choice((1, 2)))
    forms = ("Spell {w}.", "How do you spell {w}?", "Spell the word {w}.")
    if len(chosen) == 2:
        forms = ("Spell {w}.", "How do you spell {w}?", "Spell the words {w}.")
    question = ask(rng, *forms, w=" and ".join(chosen))
    answer = ", ".join("-".join(word) for word in chosen)
    held_out = len(chosen) == 2 and is_held_out("spell", *sorted(chosen))
    return Exchange(question, answer, answer, held_out, "exact")


def sequence(rng: random.Random) -> Exchange:
    """Counting; what comes after or before a day or a month."""
    if rng.random() < 0.4:
        low = rng.randrange(0, 30)
        high = low + rng.randrange(2, 10)
        numbers = ", ".join(str(n) for n in range(low, high + 1))
        question = ask(rng, "Count from {a} to {b}.", "Please count from {a} to {b}", a=low, b=high)
        return Exchange(question, numbers, numbers, is_held_out(low, high))
    items = rng.choice((vocabulary.DAYS, vocabulary.MONTHS))
    i = rng.randrange(len(items))
    after = rng.random() < 0.6
    other = items[(i + (1 if after else -1)) % len(items)]
    word = "after" if after else "before"
    question = ask(
        rng, "What comes {word} {item}?", "Which one is {word} {item}?", word=word, item=items[i]
    )
    return Exchange(question, f"{other} comes {word} {items[i]}.", other)
