"""Tasks that ask for what was taught: tables, small talk, this project; and what was not."""

from __future__ import annotations

import random

from . import vocabulary
from .exchange import Exchange, ask, is_held_out, styled
from .handbook import HANDBOOK
from .stories import invented_name
from .tables import TABLES
from .talk import DO_NOT_KNOW, SMALL_TALK

HELD_OUT_QUESTIONS = 6  # one way to ask in so many is never trained on


def pairs(rng: random.Random) -> Exchange:
    """A question that a small table answers."""
    table = rng.choice(TABLES)
    key, value = rng.choice(table.rows)
    question = ask(rng, *table.questions, key=key, value=value)
    answer = rng.choice(table.answers).format(key=key, value=value)
    return Exchange(question, answer[0].upper() + answer[1:], value)


def handbook(rng: random.Random) -> Exchange:
    """About the model, the server and their repository; some ways to ask are held out."""
    entry = rng.choice(HANDBOOK)
    question = rng.choice(entry.questions)
    held_out = is_held_out(question, share=HELD_OUT_QUESTIONS)
    return Exchange(styled(rng, question), rng.choice(entry.answers), entry.keyword, held_out)


def small_talk(rng: random.Random) -> Exchange:
    """Greetings, thanks, moods, jokes."""
    entry = rng.choice(SMALL_TALK)
    return Exchange(ask(rng, *entry.questions), rng.choice(entry.answers), entry.keyword)


def unknown(rng: random.Random) -> Exchange:
    """A topic that the model says it does not know: listed, put together or invented."""
    kind = rng.randrange(3)
    if kind == 0:
        topic = rng.choice(vocabulary.TOPICS)
    elif kind == 1:
        topic = f"{rng.choice(vocabulary.ADJECTIVES)} {rng.choice(vocabulary.WORDS)}s"
    else:
        topic = invented_name(rng)
    forms = ("What do you know about {t}?", "Tell me about {t}.", "Explain {t}.")
    if kind == 2:
        forms += ("Who is {t}?", "Who was {t}?", "Where is {t}?")
    question = ask(rng, *forms, t=topic)
    said = topic if topic in question else topic.lower()
    return Exchange(question, rng.choice(DO_NOT_KNOW).format(t=said), said)
