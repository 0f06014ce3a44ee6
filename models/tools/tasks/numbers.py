"""Tasks with numbers: sums, word problems, units. Every digit is a token, answers are direct."""

from __future__ import annotations

import random

from . import vocabulary
from .exchange import Exchange, ask, is_held_out

LIMITS = (10, 100, 100, 1000, 1000)
SIGNS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
KINDS = ("plus",) * 3 + ("minus",) * 3 + ("times",) * 3 + ("divided by",)
# (larger unit, smaller unit, how many of these it is, largest number asked for)
UNITS = (
    ("kilometres", "metres", 1000, 99),
    ("metres", "centimetres", 100, 99),
    ("centimetres", "millimetres", 10, 99),
    ("kilograms", "grams", 1000, 99),
    ("litres", "millilitres", 1000, 99),
    ("euros", "cents", 100, 99),
    ("hours", "minutes", 60, 12),
    ("minutes", "seconds", 60, 12),
    ("days", "hours", 24, 10),
    ("weeks", "days", 7, 20),
    ("years", "months", 12, 12),
    ("dozens", "pieces", 12, 12),
    ("bytes", "bits", 8, 32),
    ("kilobytes", "bytes", 1000, 99),
)


def _operands(rng: random.Random, kind: str) -> tuple[int, int, int]:
    """Two numbers and the result; of a difference the larger one nearly always comes first."""
    if kind == "times":
        a, b = rng.choice(((13, 13), (100, 10), (10, 100)))
        a, b = rng.randrange(a), rng.randrange(b)
        return a, b, a * b
    if kind == "divided by":
        b, r = rng.randrange(1, 13), rng.randrange(13)
        return b * r, b, r
    limit = rng.choice(LIMITS)
    a, b = rng.randrange(limit), rng.randrange(limit if rng.random() < 0.6 else rng.choice(LIMITS))
    if kind == "plus":
        return a, b, a + b
    if rng.random() < 0.9:
        a, b = max(a, b), min(a, b)
    return a, b, a - b


def arithmetic(rng: random.Random) -> Exchange:
    """Sums and differences below 1000, products up to two digits by one, exact quotients."""
    kind = rng.choice(KINDS)
    a, b, result = _operands(rng, kind)
    sign = rng.choice("*x") if kind == "times" else SIGNS[kind]
    values = {"a": a, "b": b, "kind": kind, "sign": sign, "r": result}
    question = ask(
        rng,
        "What is {a} {kind} {b}?",
        "What is {a} {sign} {b}?",
        "{a} {sign} {b}",
        "{a}{sign}{b}",
        "{a} {sign} {b} = ?",
        "How much is {a} {kind} {b}?",
        "Calculate {a} {sign} {b}.",
        "Can you compute {a} {kind} {b}?",
        **values,
    )
    forms = ("{r}", "{a} {sign} {b} = {r}", "{a} {kind} {b} is {r}.", "The answer is {r}.")
    answer = rng.choice(forms).format(**values)
    return Exchange(question, answer, str(result), _is_held_out(kind, a, b), "number")


def _is_held_out(kind: str, a: int, b: int) -> bool:
    """What people know by heart is all taught: quotients, the small tables, sums of small numbers.

    Nobody could find a missing one from the others, and everybody asks for them.
    """
    if kind == "divided by" or max(a, b) <= 12:
        return False
    return is_held_out(kind, *(sorted((a, b)) if kind in ("plus", "times") else (a, b)))


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
    question = ask(rng, *forms, n=name, a=a, b=b, g=goods)
    answer = f"{sum_of} = {result}, so the answer is {result}."
    return Exchange(question, answer, str(result), is_held_out(sum_of), "number")


def units(rng: random.Random) -> Exchange:
    """A whole number of one unit in another, larger or smaller."""
    large, small, factor, limit = rng.choice(UNITS)
    count = rng.randrange(2, limit + 1)
    given, result, source, target = count, count * factor, large, small
    if rng.random() < 0.4:
        given, result, source, target = result, given, target, source
    question = ask(
        rng,
        "How many {target} are {given} {source}?",
        "Convert {given} {source} to {target}.",
        "What is {given} {source} in {target}?",
        "{given} {source} in {target}",
        "How many {target} are in {given} {source}?",
        given=given,
        source=source,
        target=target,
    )
    answer = f"{given} {source} are {result} {target}."
    # Both directions are held out together; of the odd factors the few multiples are all taught.
    held_out = factor in (10, 100, 1000) and is_held_out(large, small, count)
    return Exchange(question, answer, f"{result} {target}", held_out)
