"""Invented functions: their schemas, what people ask of them, what they return. Data.

`{0}`, `{1}` are arguments, `{r[...]}` fields of the result.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from . import vocabulary
from .filling import Value, among, city, name, number, word


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument: its possible names, its JSON type, its values; `choices` become an enum."""

    names: tuple[str, ...]
    value: Value
    type: str = "string"
    description: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Function:
    """Names and descriptions to draw from; `{0}`, `{1}` are arguments, `{r[..]}` result fields."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    questions: tuple[str, ...]
    answer: str
    expected: str
    result: dict[str, Value]
    computed: Callable[..., dict[str, object]] | None = None  # the result, where it is not drawn


def _place(rng: random.Random) -> object:
    return city(rng)


CITY = Parameter(("city", "location", "place", "town"), _place, description="Name of the city")
DAY = Parameter(("day", "date", "weekday"), among(*vocabulary.DAYS), description="Day of the week")
PERSON = Parameter(("name", "person", "contact", "to", "recipient"), name, description="A person")
DEVICES = ("lamp", "heater", "fan", "radio", "oven", "television", "door", "window", "alarm")


def _product(a: int, b: int) -> dict[str, object]:
    return {"result": a * b}


FUNCTIONS = (
    Function(
        ("get_weather", "weather", "current_weather", "get_current_weather", "fetch_weather"),
        ("Get the weather in a city", "Current weather for a location", "The weather of a place"),
        (CITY,),
        (
            "What is the weather in {0}?",
            "How is the weather in {0}?",
            "What is the weather like in {0}?",
            "Is it warm in {0}?",
            "Tell me the weather for {0}.",
            "Do I need an umbrella in {0}?",
        ),
        "It is {r[condition]} in {0} with {r[temperature]} degrees.",
        "{r[temperature]}",
        {
            "temperature": number(-9, 40),
            "condition": among("sunny", "rainy", "cloudy", "windy", "clear", "foggy"),
        },
    ),
    Function(
        ("get_weather", "get_forecast", "weather_forecast"),
        ("Get the weather in a city, in a unit", "Temperature in a city"),
        (
            CITY,
            Parameter(("unit", "units"), among("celsius", "fahrenheit"),
                      description="Unit of temperature", choices=("celsius", "fahrenheit")),
        ),
        (
            "What is the temperature in {0} in {1}?",
            "How many degrees {1} is it in {0}?",
            "Give me the weather of {0} in {1}.",
        ),
        "It is {r[temperature]} degrees {1} in {0}.",
        "{r[temperature]}",
        {"temperature": number(-9, 99)},
    ),
    Function(
        ("get_time", "current_time", "time_in", "clock"),
        ("Get the time in a city", "Current local time of a place"),
        (CITY,),
        ("What time is it in {0}?", "Tell me the time in {0}.", "How late is it in {0} now?"),
        "It is {r[time]} o'clock in {0}.",
        "{r[time]}",
        {"time": number(1, 24)},
    ),
    Function(
        ("calculate", "calculator", "multiply", "product_of"),
        ("Multiply two numbers", "Compute the product of two numbers"),
        (
            Parameter(("a", "x", "first"), number(100, 1000), "integer"),
            Parameter(("b", "y", "second"), number(100, 1000), "integer"),
        ),
        ("What is {0} times {1}?", "Multiply {0} by {1}.", "{0} * {1}", "What is {0} x {1}?"),
        "{0} times {1} is {r[result]}.",
        "{r[result]}",
        {},
        _product,
    ),
    Function(
        ("convert_currency", "exchange", "currency_converter"),
        ("Convert an amount of money", "Exchange money from one currency into another"),
        (
            Parameter(("amount", "value"), number(1, 1000), "number"),
            Parameter(("source", "from", "from_currency"), among("euros", "yen", "francs")),
            Parameter(("target", "to", "to_currency"), among("dollars", "pounds", "rupees")),
        ),
        (
            "How much are {0} {1} in {2}?",
            "Convert {0} {1} to {2}.",
            "I have {0} {1}. What is that in {2}?",
        ),
        "{0} {1} are {r[amount]} {2}.",
        "{r[amount]}",
        {"amount": number(1, 2000)},
    ),
    Function(
        ("send_message", "send_email", "message", "send_text"),
        ("Send a message to a person", "Write to a contact"),
        (
            PERSON,
            Parameter(
                ("text", "body", "message", "content"),
                among("I am late", "see you soon", "dinner is ready", "call me", "happy birthday",
                      "the meeting is over", "good luck", "I am at home", "thank you"),
                description="What to say",
            ),
        ),
        (
            "Send {0} a message: {1}",
            "Write to {0}: {1}",
            "Please tell {0} this: {1}",
            "Message {0} and say: {1}",
        ),
        "Your message to {0} was {r[status]}.",
        "{r[status]}",
        {"status": among("sent", "delivered", "queued")},
    ),
    Function(
        ("set_timer", "timer", "start_timer", "countdown"),
        ("Set a timer", "Start a timer that rings after some minutes"),
        (Parameter(("minutes", "duration"), number(1, 100), "integer", "Minutes to wait"),),
        ("Set a timer for {0} minutes.", "Wake me in {0} minutes.", "Start a {0} minute timer."),
        "The timer is set for {0} minutes.",
        "{0}",
        {"status": among("ok", "started")},
    ),
    Function(
        ("add_reminder", "remind", "create_reminder", "add_event"),
        ("Add a reminder for a day", "Remind the user of something"),
        (
            Parameter(
                ("title", "text", "task", "what"),
                among("buy milk", "call the doctor", "water the garden", "pay the rent",
                      "clean the kitchen", "feed the cat", "wash the car", "read the letter"),
            ),
            DAY,
        ),
        (
            "Remind me to {0} on {1}.",
            "On {1} I must {0}. Please remind me.",
            "Add a reminder for {1}: {0}",
        ),
        "I will remind you to {0} on {1}.",
        "{1}",
        {"status": among("ok", "saved")},
    ),
    Function(
        ("set_device", "switch", "control", "turn"),
        ("Switch a device on or off", "Control a device at home"),
        (
            Parameter(("device", "name"), among(*DEVICES)),
            Parameter(("state", "action"), among("on", "off"), choices=("on", "off")),
        ),
        ("Turn {1} the {0}.", "Switch the {0} {1}.", "Please turn the {0} {1}."),
        "The {0} is {1} now.",
        "{1}",
        {"status": among("ok", "done")},
    ),
    Function(
        ("set_temperature", "thermostat", "heat"),
        ("Set the temperature of a room", "Heat a room to some degrees"),
        (
            Parameter(("room",), among("kitchen", "bedroom", "office", "bathroom", "hall")),
            Parameter(("degrees", "temperature"), number(10, 30), "integer"),
        ),
        ("Set the {0} to {1} degrees.", "Heat the {0} to {1} degrees.",
         "I want {1} degrees in the {0}."),
        "The {0} is set to {1} degrees.",
        "{1}",
        {"status": among("ok", "done")},
    ),
    Function(
        ("find_restaurant", "search_restaurants", "restaurants"),
        ("Find a restaurant in a city", "Search restaurants by food and place"),
        (
            Parameter(("cuisine", "food"), among("Italian", "Chinese", "Indian", "Greek", "Thai")),
            CITY,
        ),
        ("Find a {0} restaurant in {1}.", "Where can I eat {0} food in {1}?",
         "I would like to eat {0} food in {1}."),
        "You can try {r[name]} in {1}.",
        "{r[name]}",
        {"name": name},
    ),
    Function(
        ("book_flight", "search_flights", "find_flight", "flights"),
        ("Find a flight between two cities", "Search flights"),
        (
            Parameter(("origin", "from", "departure"), _place),
            Parameter(("destination", "to", "arrival"), _place),
            DAY,
        ),
        ("Find a flight from {0} to {1} on {2}.", "I want to fly from {0} to {1} on {2}.",
         "Is there a flight on {2} from {0} to {1}?"),
        "There is a flight from {0} to {1} for {r[price]} euros.",
        "{r[price]}",
        {"price": number(40, 999)},
    ),
    Function(
        ("translate", "translate_word", "dictionary"),
        ("Translate a word into a language", "Look a word up in another language"),
        (
            Parameter(("word", "text"), word),
            Parameter(("language", "target"), among("French", "German", "Spanish", "Italian")),
        ),
        ("Translate {0} into {1}.", "What is {0} in {1}?", "How do you say {0} in {1}?"),
        "In {1}, {0} is {r[translation]}.",
        "{r[translation]}",
        {"translation": lambda rng: name(rng).lower()},
    ),
    Function(
        ("search", "web_search", "search_web", "find_pages"),
        ("Search the web", "Search pages about a topic"),
        (Parameter(("query", "q", "topic"), lambda rng: f"{word(rng)} {word(rng)}"),),
        ("Search for {0}.", "Search the web for {0}.", "Find pages about {0}."),
        "I found {r[results]} pages about {0}.",
        "{r[results]}",
        {"results": number(2, 999)},
    ),
    Function(
        ("play_music", "play", "play_song"),
        ("Play music", "Play a song by an artist"),
        (
            Parameter(("title", "song"), lambda rng: f"{word(rng).capitalize()} {word(rng)}"),
            Parameter(("artist", "by"), name),
        ),
        ("Play {0} by {1}.", "I want to hear {0} by {1}.", "Please play the song {0} by {1}."),
        "Now playing {0} by {1}.",
        "{0}",
        {"status": among("ok", "playing")},
    ),
)  # fmt: skip
