"""Invented functions: their schemas, what people ask of them, what they return. Data and frames."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from . import vocabulary
from .exchange import Tool, is_held_out
from .filling import among, city, name, number, word

Value = Callable[[random.Random], object]


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks of one function: the call, its result, and the answer from the result."""

    function: Function
    tool: Tool
    name: str
    keys: list[str]  # the arguments' names, in the function's order
    arguments: dict[str, object]
    question: str
    result: str
    answer: str
    expected: str  # a part of the answer
    held_out: bool

    @property
    def purpose(self) -> str:
        """Two tools of one purpose would be a choice that nobody can make."""
        return self.function.names[0]


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
ATTRIBUTES = (
    "price", "weight", "height", "length", "age", "owner", "status", "size", "rating", "value",
    "temperature", "speed", "stock", "address", "population", "distance", "score", "balance",
    "version", "capacity", "volume", "depth", "width", "phone number", "birthday", "colour",
)  # fmt: skip
ENTITIES = ("item", "product", "object", "name", "thing", "entity", "key", "query", "subject")
VERBS = ("get", "find", "fetch", "look_up", "check", "read", "query", "show", "lookup")
ACTIONS = (
    "open", "close", "start", "stop", "delete", "create", "send", "print", "copy", "move", "lock",
    "unlock", "book", "cancel", "order", "buy", "sell", "paint", "clean", "repair", "share",
    "save", "upload", "download", "archive", "rename",
)  # fmt: skip

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
        lambda a, b: {"result": a * b},
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


def _attribute(rng: random.Random) -> Function:
    """A function that looks one attribute of something up."""
    attribute = rng.choice(ATTRIBUTES)
    key = attribute.replace(" ", "_")
    entity = Parameter((rng.choice(ENTITIES),), word if rng.random() < 0.5 else name)
    return Function(
        (f"{rng.choice(VERBS)}_{key}", f"{key}_of", f"{rng.choice(VERBS)}_{key}"),
        (
            f"Get the {attribute} of something",
            f"Look up the {attribute}",
            f"Returns the {attribute}",
        ),
        (entity,),
        (
            f"What is the {attribute} of {{0}}?",
            f"Tell me the {attribute} of {{0}}.",
            f"Look up the {attribute} of {{0}}.",
            f"I need the {attribute} of {{0}}.",
        ),
        f"The {attribute} of {{0}} is {{r[{key}]}}.",
        f"{{r[{key}]}}",
        {key: rng.choice((number(1, 1000), word, name))},
    )


def _action(rng: random.Random) -> Function:
    """A function that does something to a thing with a name."""
    action, thing = rng.choice(ACTIONS), word(rng)
    return Function(
        (f"{action}_{thing}", f"{thing}_{action}"),
        (f"{action.capitalize()} a {thing}", f"{action.capitalize()} the {thing} with this name"),
        (Parameter((rng.choice(("name", "id", "title", "label", thing)),), _label),),
        (
            f"Please {action} the {thing} {{0}}.",
            f"{action.capitalize()} the {thing} {{0}}.",
            f"Can you {action} the {thing} {{0}}?",
            f"I want you to {action} the {thing} {{0}}.",
        ),
        f"Done: {action} {thing} {{0}}.",
        "{0}",
        {"status": among("ok", "done", "success")},
    )


def _label(rng: random.Random) -> object:
    return rng.choice((name(rng), str(rng.randrange(100, 10000))))


def request(rng: random.Random) -> Request:
    """A request of a listed function or, as often, of one that is put together."""
    kind = rng.random()
    if kind < 0.5:
        return _filled(rng, rng.choice(FUNCTIONS))
    return _filled(rng, _attribute(rng) if kind < 0.8 else _action(rng))


def another(rng: random.Random, before: Request) -> Request:
    """The same function asked again for something else."""
    return _asked(rng, before.function, before.tool, before.name, before.keys)


def _filled(rng: random.Random, function: Function) -> Request:
    called = rng.choice(function.names)
    names = [rng.choice(parameter.names) for parameter in function.parameters]
    schema = _schema(rng, function, names)
    described: Tool = {"name": called}
    if rng.random() < 0.9:
        described["description"] = rng.choice(function.descriptions)
    described["parameters"] = schema
    tool: Tool = {"type": "function", "function": described}
    return _asked(rng, function, tool, called, names)


def _schema(rng: random.Random, function: Function, names: list[str]) -> dict[str, object]:
    properties: dict[str, object] = {}
    describes = rng.random() < 0.4
    for key, parameter in zip(names, function.parameters, strict=True):
        said: dict[str, object] = {"type": parameter.type}
        if parameter.choices:
            said["enum"] = list(parameter.choices)
        if describes and parameter.description:
            said["description"] = parameter.description
        properties[key] = said
    schema: dict[str, object] = {"type": "object", "properties": properties}
    return schema | ({"required": names} if rng.random() < 0.7 else {})


def _asked(
    rng: random.Random, function: Function, tool: Tool, called: str, keys: list[str]
) -> Request:
    values = [parameter.value(rng) for parameter in function.parameters]
    arguments: dict[str, object] = dict(zip(keys, values, strict=True))
    result = {key: make(rng) for key, make in function.result.items()}
    if function.computed:
        result = function.computed(*values)
    question = rng.choice(function.questions).format(*values)
    style = rng.random()
    if style < 0.1:
        question = question.rstrip("?.!")
    elif style < 0.2:
        question = f"Please tell me: {question}"
    return Request(
        function,
        tool,
        called,
        keys,
        arguments,
        question,
        json.dumps(result),
        function.answer.format(*values, r=result),
        function.expected.format(*values, r=result),
        is_held_out(called, *map(str, values)),
    )
