"""A task with JSON: the fields that are asked for, taken from a sentence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from . import vocabulary
from .exchange import Exchange, is_held_out
from .tables import CAPITALS

Value = Callable[[random.Random], object]


def name(rng: random.Random) -> str:
    return rng.choice(vocabulary.NAMES) if rng.random() < 0.5 else invented(rng)


def invented(rng: random.Random) -> str:
    """A capitalised word of two to four syllables."""
    return "".join(rng.choices(vocabulary.SYLLABLES, k=rng.randrange(2, 5))).capitalize()


def city(rng: random.Random) -> str:
    return rng.choice(CAPITALS) if rng.random() < 0.6 else invented(rng)


def word(rng: random.Random) -> str:
    return rng.choice(vocabulary.WORDS)


def number(low: int, high: int) -> Value:
    return lambda rng: rng.randrange(low, high)


def among(*values: str) -> Value:
    return lambda rng: rng.choice(values)


@dataclass(frozen=True, slots=True)
class Kind:
    """Fields with their makers, each under several names, and sentences that say them all."""

    fields: dict[str, Value]
    sentences: tuple[str, ...]


OTHER_KEYS = {
    "name": ("name", "person", "first_name", "who"),
    "age": ("age", "years"),
    "city": ("city", "place", "town", "location"),
    "item": ("item", "product", "thing"),
    "quantity": ("quantity", "count", "number", "amount"),
    "price": ("price", "cost"),
    "color": ("color", "colour"),
    "day": ("day", "weekday", "date"),
    "hour": ("hour", "time"),
    "author": ("author", "writer"),
    "origin": ("origin", "from", "start"),
    "destination": ("destination", "to", "end"),
}
COLOURS = among("red", "blue", "green", "yellow", "black", "white", "grey", "brown")
KINDS = (
    Kind(
        {"name": name, "age": number(1, 100), "city": city},
        (
            "{name} is {age} years old and lives in {city}.",
            "{name}, aged {age}, comes from {city}.",
            "My friend {name} from {city} turned {age} last week.",
            "In {city} lives {name}, who is {age}.",
        ),
    ),
    Kind(
        {"item": word, "quantity": number(1, 100), "price": number(1, 1000)},
        (
            "Please order {quantity} times the {item} for {price} euros.",
            "I bought {quantity} of the {item} at a price of {price}.",
            "The {item} costs {price}, and we need {quantity} of it.",
        ),
    ),
    Kind(
        {"name": name, "day": among(*vocabulary.DAYS), "hour": number(1, 24)},
        (
            "Meet {name} on {day} at {hour} o'clock.",
            "On {day} at {hour} there is a meeting with {name}.",
            "{name} has an appointment at {hour} on {day}.",
        ),
    ),
    Kind(
        {
            "title": lambda r: f"The {word(r).capitalize()}",
            "author": name,
            "year": number(1900, 2030),
        },
        (
            "{author} wrote {title} in {year}.",
            "{title} is a book by {author} from {year}.",
            "The book {title}, written by {author}, appeared in {year}.",
        ),
    ),
    Kind(
        {"origin": city, "destination": city, "day": among(*vocabulary.DAYS)},
        (
            "I fly from {origin} to {destination} on {day}.",
            "Book a train to {destination} from {origin} for {day}.",
            "On {day} we leave {origin} and travel to {destination}.",
        ),
    ),
    Kind(
        {
            "city": city,
            "temperature": number(1, 40),
            "weather": among("sunny", "rainy", "cloudy", "windy"),
        },
        (
            "It is {weather} in {city} with {temperature} degrees.",
            "{city} has {temperature} degrees and it is {weather}.",
            "Today {city} is {weather} at {temperature} degrees.",
        ),
    ),
    Kind(
        {"name": name, "animal": among(*vocabulary.ANIMALS), "color": COLOURS},
        (
            "{name} has a {color} {animal}.",
            "The {animal} of {name} is {color}.",
            "A {color} {animal} belongs to {name}.",
        ),
    ),
    Kind(
        {"item": word, "color": COLOURS, "price": number(1, 1000)},
        (
            "The {color} {item} costs {price} dollars.",
            "A {item} in {color} for {price} dollars, please.",
            "We sell the {item} for {price}, and it is {color}.",
        ),
    ),
)
FORMS = (
    "Fill a JSON object with {keys} from this sentence: {sentence}",
    "Extract {keys} as JSON: {sentence}",
    "{sentence} Return JSON with the keys {keys}.",
    "Turn this into JSON with {keys}: {sentence}",
    "Give me {keys} as a JSON object. {sentence}",
    "Read this: {sentence} Answer with a JSON object that has the fields {keys}.",
)


def fill_json(rng: random.Random) -> Exchange:
    """Two or three fields of a sentence, in the order in which they are asked for."""
    kind = rng.choice(KINDS)
    values = {field: make(rng) for field, make in kind.fields.items()}
    fields = rng.sample(list(values), rng.choice((2, 3, len(values))))
    keys = {field: rng.choice(OTHER_KEYS.get(field, (field,))) for field in fields}
    sentence = rng.choice(kind.sentences).format(**values)
    question = rng.choice(FORMS).format(keys=_listed(rng, list(keys.values())), sentence=sentence)
    answer = json.dumps({keys[field]: values[field] for field in fields})
    return Exchange(question, answer, answer, is_held_out(*values.values()), "json")


def _listed(rng: random.Random, keys: list[str]) -> str:
    if rng.random() < 0.5:
        return ", ".join(keys)
    return ", ".join(keys[:-1]) + " and " + keys[-1]
