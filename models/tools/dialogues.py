"""The project's own dialogues for the bundled model: generated, seeded, with held-out questions.

`generate(seed, count)` yields conversations as lists of {"role", "content"}; `held_out(seed)` yields
(task, question, accepted answers) whose operands no training dialogue uses.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import facts

Message = dict[str, str]
HELD_OUT_SHARE = 20  # one operand pair in so many is never trained on


def is_held_out(*operands: object) -> bool:
    """Whether a question with these operands belongs to the test set: a fixed hash, no state."""
    digest = 0
    for character in repr(operands):
        digest = (digest * 131 + ord(character)) % 1_000_003
    return digest % HELD_OUT_SHARE == 0


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question, its answer, and what a grader looks for in the answer."""

    question: str
    answer: str
    expected: str = ""
    held_out: bool = False


Task = Callable[[random.Random], Exchange]


def _ask(rng: random.Random, *forms: str, **values: object) -> str:
    text = rng.choice(forms).format(**values)
    style = rng.random()
    if style < 0.15:
        return text.lower()
    if style < 0.25:
        return text.rstrip("?.!")
    if style < 0.3:
        return f"Please tell me: {text}"
    return text


def arithmetic(rng: random.Random) -> Exchange:
    kind = rng.choice(("plus", "plus", "minus", "minus", "times"))
    limit = rng.choice((10, 20, 100, 100, 1000))
    a, b = rng.randrange(limit), rng.randrange(limit)
    if kind == "times":
        a, b = rng.randrange(13), rng.randrange(13)
    if kind == "minus":
        a, b = max(a, b), min(a, b)
    sign = {"plus": "+", "minus": "-", "times": rng.choice("*x")}[kind]
    result = {"plus": a + b, "minus": a - b, "times": a * b}[kind]
    question = _ask(
        rng,
        "What is {a} {kind} {b}?",
        "What is {a} {sign} {b}?",
        "{a} {sign} {b}",
        "{a} {sign} {b} = ?",
        "How much is {a} {kind} {b}?",
        "Calculate {a} {sign} {b}.",
        "Can you compute {a} {kind} {b}?",
        a=a,
        b=b,
        kind=kind,
        sign=sign,
    )
    form = rng.choice(
        ("{r}", "{a} {sign} {b} = {r}", "{a} {kind} {b} is {r}.", "The answer is {r}.")
    )
    answer = form.format(a=a, b=b, kind=kind, sign=sign, r=result)
    return Exchange(question, answer, str(result), is_held_out(kind, a, b))


def words(rng: random.Random) -> Exchange:
    """Reverse, sort, count or spell a few words."""
    count = rng.randrange(2, 6)
    chosen = rng.sample(facts.WORDS, count)
    listing = rng.choice((", ", " ")).join(chosen)
    held = is_held_out(*chosen)
    match rng.randrange(4):
        case 0:
            question = _ask(
                rng, "Reverse these words: {w}", "Say these words backwards: {w}", w=listing
            )
            return Exchange(
                question, ", ".join(reversed(chosen)), ", ".join(reversed(chosen)), held
            )
        case 1:
            question = _ask(
                rng,
                "Sort these words: {w}",
                "Put these words in alphabetical order: {w}",
                w=listing,
            )
            return Exchange(question, ", ".join(sorted(chosen)), ", ".join(sorted(chosen)), held)
        case 2:
            question = _ask(
                rng, "How many words are here: {w}", "Count these words: {w}", w=listing
            )
            return Exchange(question, f"There are {count} words.", str(count), held)
        case _:
            word = chosen[0]
            question = _ask(
                rng, "Spell {w}.", "How do you spell {w}?", "Spell the word {w}", w=word
            )
            return Exchange(question, "-".join(word), "-".join(word), is_held_out(word))


def pairs(rng: random.Random) -> Exchange:
    """A question that a small table answers."""
    table = rng.choice(facts.TABLES)
    key, value = rng.choice(table.rows)
    question = _ask(rng, *table.questions, key=key, value=value)
    answer = rng.choice(table.answers).format(key=key, value=value)
    return Exchange(question, answer[0].upper() + answer[1:], value)


def sequence(rng: random.Random) -> Exchange:
    """What comes after or before a day, a month or a number; counting."""
    if rng.random() < 0.4:
        low = rng.randrange(0, 30)
        high = low + rng.randrange(2, 10)
        numbers = ", ".join(str(n) for n in range(low, high + 1))
        question = _ask(
            rng, "Count from {a} to {b}.", "Please count from {a} to {b}", a=low, b=high
        )
        return Exchange(question, numbers, numbers, is_held_out(low, high))
    items = rng.choice((facts.DAYS, facts.MONTHS))
    i = rng.randrange(len(items))
    after = rng.random() < 0.6
    other = items[(i + (1 if after else -1)) % len(items)]
    word = "after" if after else "before"
    question = _ask(
        rng, "What comes {word} {item}?", "Which one is {word} {item}?", word=word, item=items[i]
    )
    return Exchange(question, f"{other} comes {word} {items[i]}.", other)


def project(rng: random.Random) -> Exchange:
    entry = rng.choice(facts.PROJECT)
    return Exchange(_ask(rng, *entry.questions), rng.choice(entry.answers), entry.keyword)


def small_talk(rng: random.Random) -> Exchange:
    entry = rng.choice(facts.SMALL_TALK)
    return Exchange(_ask(rng, *entry.questions), rng.choice(entry.answers), entry.keyword)


def unknown(rng: random.Random) -> Exchange:
    topic = rng.choice(facts.UNKNOWN)
    question = _ask(
        rng, "What do you know about {t}?", "Tell me about {t}.", "Explain {t}.", t=topic
    )
    return Exchange(question, rng.choice(facts.DO_NOT_KNOW).format(t=topic), "small")


def story(rng: random.Random) -> Exchange:
    subject = rng.choice(facts.ANIMALS)
    values = {
        "animal": subject,
        "name": rng.choice(facts.NAMES),
        "adjective": rng.choice(facts.ADJECTIVES),
        "place": rng.choice(facts.PLACES),
        "thing": rng.choice(facts.THINGS),
        "friend": rng.choice(facts.ANIMALS),
        "feeling": rng.choice(("happy", "proud", "calm", "glad", "safe")),
    }
    kind = rng.choice(("story", "story", "sentence", "poem"))
    question = _ask(
        rng,
        f"Write a {kind} about a {{animal}}.",
        f"Tell me a {kind} about a {{animal}}.",
        f"Can you write a short {kind} about a {{animal}}?",
        **values,
    )
    parts = [rng.choice(lines) for lines in facts.STORY[kind]]
    separator = "\n" if kind == "poem" else " "
    return Exchange(question, separator.join(parts).format(**values), subject)


TASKS: list[tuple[Task, float]] = [
    (arithmetic, 4.0),
    (words, 2.5),
    (pairs, 3.0),
    (sequence, 1.0),
    (project, 3.0),
    (small_talk, 3.0),
    (unknown, 0.5),
    (story, 1.5),
]


def _exchange(rng: random.Random) -> Exchange:
    tasks, weights = zip(*TASKS, strict=True)
    while True:
        made = rng.choices(tasks, weights)[0](rng)
        if not made.held_out:
            return made


def generate(seed: int, count: int) -> Iterator[list[Message]]:
    """`count` conversations of one to four exchanges, some with a system message or a greeting."""
    rng = random.Random(f"train {seed}")
    for _ in range(count):
        messages: list[Message] = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "content": rng.choice(facts.SYSTEM)})
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            exchange = _exchange(rng)
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        yield messages


def held_out(seed: int, per_task: int) -> Iterator[tuple[str, Exchange]]:
    """(task, exchange) for measuring: unseen operands where there are any, else unseen wording."""
    for task, _ in TASKS:
        if task in (story, unknown):
            continue
        rng = random.Random(f"test {seed} {task.__name__}")
        found = 0
        needs_operands = task in (arithmetic, words)
        while found < per_task:
            exchange = task(rng)
            if exchange.held_out or not needs_operands:
                found += 1
                yield task.__name__, exchange
