"""The project's own dialogues for the bundled model: generated, seeded, with an exam.

`generate(seed, count)` yields conversations in plain turns; `exam(seed, per_task)` yields cases to
measure with. Those of the `UNSEEN` tasks have operands, words or a wording that no training
dialogue uses, the others ask for what was taught.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import calls, filling, knowledge, numbers, stories, talk, words
from .exchange import Case, Exchange, Message, Task
from .tool_text import Turn, plain_turns

TASKS: list[tuple[Task, float]] = [
    (numbers.arithmetic, 8.0),
    (numbers.word_problem, 0.8),
    (numbers.units, 1.0),
    (words.reverse, 1.0),
    (words.sort, 1.6),
    (words.count, 0.4),
    (words.spell, 0.6),
    (words.sequence, 0.6),
    (filling.fill_json, 1.3),
    (knowledge.pairs, 1.3),
    (knowledge.handbook, 5.5),
    (knowledge.small_talk, 1.2),
    (knowledge.unknown, 0.8),
    (stories.story, 0.8),
]
# Questions that are answered without a tool, whatever the tools on offer.
WITHOUT_TOOLS: list[tuple[Task, float]] = [
    (knowledge.handbook, 1.0),
    (knowledge.small_talk, 1.0),
    (knowledge.pairs, 1.0),
    (words.reverse, 0.5),
    (stories.story, 0.5),
]
UNSEEN = (
    "arithmetic", "word_problem", "units", "reverse", "sort", "count", "spell", "sequence",
    "fill_json", "handbook", "tool_call", "tool_answer", "passkey",
)  # fmt: skip
INTRODUCED = 0.08  # share of the conversations
WITH_TOOLS = 0.2
DRAWS = 100  # for each case of the exam: one question in twenty is held out


def task_name(task: Task) -> str:
    return task.__name__


def draw(rng: random.Random, tasks: list[tuple[Task, float]]) -> Exchange:
    """An exchange of one of the tasks, held out or not."""
    makers, weights = zip(*tasks, strict=True)
    return rng.choices(makers, weights)[0](rng)


def _trained(rng: random.Random) -> Exchange:
    while True:
        made = draw(rng, TASKS)
        if not made.held_out:
            return made


def without_tools(rng: random.Random) -> Exchange:
    return draw(rng, WITHOUT_TOOLS)


def _system(rng: random.Random, share: float) -> list[Turn]:
    return [("system", rng.choice(talk.SYSTEM))] if rng.random() < share else []


def _plain(rng: random.Random) -> list[Turn]:
    exchanges = [_trained(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)))]
    if rng.random() < INTRODUCED:
        given, asked = stories.introduction(rng)
        exchanges = [given, *exchanges[: rng.randrange(len(exchanges) + 1)], asked]
    turns = _system(rng, 0.3)
    for exchange in exchanges:
        turns += [("user", exchange.question), ("assistant", exchange.answer)]
    return turns


def _with_tools(rng: random.Random) -> list[Turn]:
    while True:
        chat = calls.tool_chat(rng, without_tools)
        if not chat.held_out:
            break
    system: list[Message] = [{"role": role, "content": said} for role, said in _system(rng, 0.3)]
    return plain_turns([*system, *chat.messages], chat.tools)


def generate(seed: int, count: int) -> Iterator[list[Turn]]:
    """`count` conversations of one to six exchanges, some with a system message or tools."""
    rng = random.Random(f"train {seed}")
    for _ in range(count):
        yield _with_tools(rng) if rng.random() < WITH_TOOLS else _plain(rng)


def exam(seed: int, per_task: int) -> Iterator[Case]:
    """`per_task` cases of every task with one right answer, but for the pass keys.

    No question is asked twice; a task that has fewer to ask has fewer cases.
    """
    for task, _ in TASKS:
        if task is stories.story:
            continue
        rng = random.Random(f"test {seed} {task_name(task)}")
        only_held_out = task_name(task) in UNSEEN
        asked: set[str] = set()
        for _ in range(DRAWS * per_task):
            exchange = task(rng)
            is_wanted = exchange.held_out or not only_held_out
            if len(asked) == per_task:
                break
            if is_wanted and exchange.question not in asked:
                asked.add(exchange.question)
                messages = [calls.user(exchange.question)]
                yield Case(task_name(task), messages, exchange.expected, exchange.grade)
    rng = random.Random(f"test {seed} tools")
    found = 0
    while found < per_task:
        cases = calls.exam_cases(rng, without_tools)
        yield from cases
        found += bool(cases)
