"""The project's own dialogues for the bundled model: generated, seeded, with an exam.

`generate(seed, count)` yields conversations as lists of {"role", "content"}; `exam(seed, per_task)`
yields questions to measure with. Those of the `UNSEEN` tasks have operands that no training
dialogue uses, the others ask for what was taught.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import talk, vocabulary
from .tables import TABLES

Message = dict[str, str]
HELD_OUT_SHARE = 20  # one operand pair in so many is never trained on


def is_held_out(*operands: object) -> bool:
    """Whether a question with these operands belongs to the exam: a fixed hash, no state."""
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
    """Sums and differences below 1000, products up to 12 x 12."""
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


def word_problem(rng: random.Random) -> Exchange:
    """A sum or difference below 100 that somebody meets with."""
    a, b = rng.randrange(2, 50), rng.randrange(2, 50)
    name, goods = rng.choice(vocabulary.NAMES), rng.choice(vocabulary.GOODS)
    if rng.random() < 0.5:
        forms = (
            "{n} has {a} {g} and buys {b} more. How many {g} does {n} have now?",
            "{n} has {a} {g}. A friend brings {b} more. How many are there?",
            "If {n} has {a} {g} and gets {b} more, how many {g} does {n} have?",
        )
        sum_of, result = f"{a} + {b}", a + b
    else:
        a, b = max(a, b), min(a, b)
        forms = (
            "{n} has {a} {g} and gives away {b}. How many {g} are left?",
            "{n} has {a} {g}. {n} loses {b} of them. How many does {n} have now?",
            "If {n} has {a} {g} and sells {b}, how many {g} are left?",
        )
        sum_of, result = f"{a} - {b}", a - b
    question = _ask(rng, *forms, n=name, a=a, b=b, g=goods)
    answer = f"{sum_of} = {result}, so the answer is {result}."
    return Exchange(question, answer, str(result), is_held_out(sum_of))


def words(rng: random.Random) -> Exchange:
    """Reverse, sort, count or spell a few words."""
    count = rng.randrange(2, 6)
    chosen = rng.sample(vocabulary.WORDS, count)
    listing = rng.choice((", ", " ")).join(chosen)
    held = is_held_out(*chosen)
    match rng.randrange(4):
        case 0:
            forms = ("Reverse these words: {w}", "Say these words backwards: {w}")
            answer = expected = ", ".join(reversed(chosen))
        case 1:
            forms = ("Sort these words: {w}", "Put these words in alphabetical order: {w}")
            answer = expected = ", ".join(sorted(chosen))
        case 2:
            forms = ("How many words are here: {w}", "Count these words: {w}")
            answer, expected = f"There are {count} words.", str(count)
        case _:
            listing = chosen[0]
            held = is_held_out(listing)
            forms = ("Spell {w}.", "How do you spell {w}?", "Spell the word {w}")
            answer = expected = "-".join(listing)
    return Exchange(_ask(rng, *forms, w=listing), answer, expected, held)


def pairs(rng: random.Random) -> Exchange:
    """A question that a small table answers."""
    table = rng.choice(TABLES)
    key, value = rng.choice(table.rows)
    question = _ask(rng, *table.questions, key=key, value=value)
    answer = rng.choice(table.answers).format(key=key, value=value)
    return Exchange(question, answer[0].upper() + answer[1:], value)


def sequence(rng: random.Random) -> Exchange:
    """Counting; what comes after or before a day or a month."""
    if rng.random() < 0.4:
        low = rng.randrange(0, 30)
        high = low + rng.randrange(2, 10)
        numbers = ", ".join(str(n) for n in range(low, high + 1))
        question = _ask(
            rng, "Count from {a} to {b}.", "Please count from {a} to {b}", a=low, b=high
        )
        return Exchange(question, numbers, numbers, is_held_out(low, high))
    items = rng.choice((vocabulary.DAYS, vocabulary.MONTHS))
    i = rng.randrange(len(items))
    after = rng.random() < 0.6
    other = items[(i + (1 if after else -1)) % len(items)]
    word = "after" if after else "before"
    question = _ask(
        rng, "What comes {word} {item}?", "Which one is {word} {item}?", word=word, item=items[i]
    )
    return Exchange(question, f"{other} comes {word} {items[i]}.", other)


def project(rng: random.Random) -> Exchange:
    """About the model, the server and their repository."""
    entry = rng.choice(talk.PROJECT)
    return Exchange(_ask(rng, *entry.questions), rng.choice(entry.answers), entry.keyword)


def small_talk(rng: random.Random) -> Exchange:
    """Greetings, thanks, moods, jokes."""
    entry = rng.choice(talk.SMALL_TALK)
    return Exchange(_ask(rng, *entry.questions), rng.choice(entry.answers), entry.keyword)


def unknown(rng: random.Random) -> Exchange:
    """A topic that the model says it does not know: listed, put together or invented."""
    kind = rng.randrange(3)
    if kind == 0:
        topic = rng.choice(vocabulary.TOPICS)
    elif kind == 1:
        topic = f"{rng.choice(vocabulary.ADJECTIVES)} {rng.choice(vocabulary.WORDS)}s"
    else:
        topic = _invented_name(rng)
    forms = ("What do you know about {t}?", "Tell me about {t}.", "Explain {t}.")
    if kind == 2:
        forms += ("Who is {t}?", "Who was {t}?", "Where is {t}?")
    question = _ask(rng, *forms, t=topic)
    said = topic if topic in question else topic.lower()
    return Exchange(question, rng.choice(talk.DO_NOT_KNOW).format(t=said), said)


def _invented_name(rng: random.Random) -> str:
    """One or two capitalised words of two to four syllables."""
    words = ("".join(rng.choices(vocabulary.SYLLABLES, k=rng.randrange(2, 5))) for _ in range(2))
    return " ".join(word.capitalize() for word in list(words)[: rng.randrange(1, 3)])


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
    question = _ask(
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
    name = rng.choice(vocabulary.NAMES) if rng.random() < 0.5 else _invented_name(rng)
    given = rng.choice(("My name is {n}.", "I am {n}.", "Hello, I am {n}.", "Hi! My name is {n}."))
    answer = rng.choice(("Nice to meet you, {n}!", "Hello {n}! How can I help you?"))
    asked = _ask(rng, "What is my name?", "Do you remember my name?", "What was my name?")
    return (
        Exchange(given.format(n=name), answer.format(n=name), name),
        Exchange(asked, f"Your name is {name}.", name),
    )


TASKS: list[tuple[Task, float]] = [
    (arithmetic, 4.0),
    (word_problem, 1.0),
    (words, 2.5),
    (pairs, 3.0),
    (sequence, 1.0),
    (project, 3.0),
    (small_talk, 3.0),
    (unknown, 1.5),
    (story, 1.5),
]
UNSEEN = ("arithmetic", "word_problem", "words", "sequence")
INTRODUCED = 0.1  # share of the conversations


def _exchange(rng: random.Random) -> Exchange:
    tasks, weights = zip(*TASKS, strict=True)
    while True:
        made = rng.choices(tasks, weights)[0](rng)
        if not made.held_out:
            return made


def generate(seed: int, count: int) -> Iterator[list[Message]]:
    """`count` conversations of one to six exchanges, some with a system message."""
    rng = random.Random(f"train {seed}")
    for _ in range(count):
        messages: list[Message] = []
        if rng.random() < 0.3:
            messages.append({"role": "system", "content": rng.choice(talk.SYSTEM)})
        exchanges = [_exchange(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)))]
        if rng.random() < INTRODUCED:
            given, asked = introduction(rng)
            exchanges = [given, *exchanges[: rng.randrange(len(exchanges) + 1)], asked]
        for exchange in exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        yield messages


def exam(seed: int, per_task: int) -> Iterator[tuple[str, Exchange]]:
    """(task, exchange) of every task with one right answer; see `UNSEEN`."""
    for task, _ in TASKS:
        if task is story:
            continue
        rng = random.Random(f"test {seed} {task.__name__}")
        found = 0
        while found < per_task:
            exchange = task(rng)
            if exchange.held_out or task.__name__ not in UNSEEN:
                found += 1
                yield task.__name__, exchange
