"""What the bundled model is taught and asked: answers are right, and the exam was never shown."""

import json
import operator
import random
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import turbosparse
from turbosparse.models.tools import exam, grading, greedy
from turbosparse.models.tools.tasks import calls, dialogues, functions, passkey
from turbosparse.models.tools.tasks.exchange import Case
from turbosparse.models.tools.tasks.handbook import HANDBOOK
from turbosparse.models.tools.tasks.tool_text import plain_turns
from turbosparse.server.chat_template import ChatTemplate
from turbosparse.server.conversation import conversation
from turbosparse.server.schemas import ChatRequest
from turbosparse.server.tool_parser import parse

TINY = Path(turbosparse.__file__).parent / "models" / "tiny"
TASKS = {dialogues.task_name(task): task for task, _ in dialogues.TASKS}
OPERATIONS = {
    "plus": operator.add,
    "+": operator.add,
    "minus": operator.sub,
    "-": operator.sub,
    "times": operator.mul,
    "*": operator.mul,
    "x": operator.mul,
    "divided by": operator.floordiv,
    "/": operator.floordiv,
}
FRAMES = passkey.FRAME_TOKENS + passkey.MAX_KEYS * passkey.KEY_TOKENS
SUM = re.compile(r"(\d+) ?(plus|minus|times|divided by|[+\-*x/]) ?(\d+)")


def drawn(name: str, count: int = 300):
    rng = random.Random(0)
    return [TASKS[name](rng) for _ in range(count)]


def right(grade: str, expected: str, text: str) -> bool:
    return grading.is_right(grade, expected, grading.read(text))


def words_of(question: str) -> list[str]:
    return re.findall(r"[a-z]+", question.rpartition(":")[2])


def count_words(texts):
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize("name", TASKS)
def test_every_taught_answer_passes_its_own_exam(name):
    for exchange in drawn(name):
        assert exchange.grade in grading.GRADES
        assert right(exchange.grade, exchange.expected, exchange.answer), exchange
        assert name == "fill_json" or "{" not in exchange.question + exchange.answer


def test_sums_are_right():
    for exchange in drawn("arithmetic", 1000):
        a, kind, b = SUM.search(exchange.question).groups()
        assert exchange.expected == str(OPERATIONS[kind](int(a), int(b))), exchange


def test_word_problems_are_right():
    for exchange in drawn("word_problem"):
        a, b = map(int, re.findall(r"\d+", exchange.question))
        takes = re.search("gives away|loses|sells", exchange.question.lower())
        assert exchange.expected == str(a - b if takes else a + b), exchange


def test_units_are_right():
    to_least = {
        "kilometres": 1e6, "metres": 1e3, "centimetres": 10, "millimetres": 1, "kilograms": 1000,
        "grams": 1, "litres": 1000, "millilitres": 1, "euros": 100, "cents": 1, "weeks": 604800,
        "days": 86400, "hours": 3600, "minutes": 60, "seconds": 1, "years": 12, "months": 1,
        "dozens": 12, "pieces": 1, "kilobytes": 8000, "bytes": 8, "bits": 1,
    }  # fmt: skip
    for exchange in drawn("units"):
        given, source, result, target = re.match(
            r"(\d+) (\w+) are (\d+) (\w+)\.", exchange.answer
        ).groups()
        assert int(given) * to_least[source] == int(result) * to_least[target], exchange
        assert given in exchange.question


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("reverse", lambda words: ", ".join(words[::-1])),
        ("sort", lambda words: ", ".join(sorted(words))),
        ("count", lambda words: str(len(words))),
    ],
)
def test_lists_of_words_are_right(name, answer):
    for exchange in drawn(name):
        words = words_of(exchange.question)
        assert exchange.expected == answer(words), exchange


def test_json_holds_what_the_sentence_says():
    for exchange in drawn("fill_json"):
        for key, value in json.loads(exchange.answer).items():
            assert key in exchange.question
            assert str(value) in exchange.question
            assert type(value) in (int, str)


def test_calls_name_a_tool_on_offer_and_its_parameters():
    rng = random.Random(0)
    for _ in range(300):
        request = functions.request(rng)
        tools = calls.offer(rng, request)
        names = [tool["function"]["name"] for tool in tools]
        assert len(set(names)) == len(names), "the server refuses a name that is there twice"
        schema = tools[names.index(request.name)]["function"]["parameters"]
        assert list(request.arguments) == list(schema["properties"])
        for key, value in request.arguments.items():
            said = schema["properties"][key]
            assert isinstance(value, {"string": str, "integer": int, "number": int}[said["type"]])
            assert value in said.get("enum", [value])
            assert str(value).lower() in request.question.lower()
        assert request.expected in request.answer


def test_a_handbook_entry_has_its_keyword_in_each_answer_and_many_questions():
    assert len(HANDBOOK) > 100
    for entry in HANDBOOK:
        assert entry.answers
        assert all(entry.keyword.lower() in answer.lower() for answer in entry.answers), entry
        assert len(entry.questions) >= 4, entry.keyword
    asked = [question for entry in HANDBOOK for question in entry.questions]
    assert len(set(asked)) == len(asked), "one question, two answers"


def test_the_flags_of_the_handbook_exist():
    """What it teaches is the documents': a flag or a route that goes must go here too."""
    root = Path(turbosparse.__file__).parent
    told = "\n".join(path.read_text() for path in (root / "docs").glob("*.md"))
    told += (root / "README.md").read_text() + (root / "models" / "tiny" / "README.md").read_text()
    for entry in HANDBOOK:
        for answer in entry.answers:
            for name in re.findall(r"(?<!\w)--[a-z][a-z-]+|(?<![\w:/.])/[a-z0-9_/]{4,}", answer):
                assert name in told, f"{name} in {answer!r}"


def test_the_exam_asks_what_training_never_showed():
    """Both sides are seeded, so the outcome is fixed; the sizes make an overlap all but sure."""
    shown = {
        content
        for conversation in dialogues.generate(0, 25_000)
        for role, content in conversation
        if role == "user"
    }
    assert len(shown) > 30_000
    cases = list(dialogues.exam(exam.SEED, 60))
    unseen = {str(c.messages[0]["content"]) for c in cases if c.task in dialogues.UNSEEN}
    taught = {str(c.messages[0]["content"]) for c in cases if c.task in ("pairs", "small_talk")}
    assert not unseen & shown
    assert taught & shown, "the comparison itself works"


def test_pass_keys_of_the_exam_are_not_those_of_training():
    rng = random.Random(0)
    told = " ".join(
        turns[0][1]
        for turns, held_out in (passkey.document(rng, count_words, 200, ()) for _ in range(500))
        if not held_out
    )
    found: list[Case] = []
    while len(found) < 100:
        case = passkey.exam_case(rng, count_words, 200)
        found += [case] if case else []
    for case in found:
        assert case.expected in case.messages[0]["content"]
        assert not re.search(rf"\b{case.expected}\b", told)


@pytest.mark.parametrize("length", [200, 1000])
def test_a_text_with_keys_is_as_long_as_was_asked_and_answers_what_it_told(length):
    rng = random.Random(0)
    for _ in range(30):
        turns, _ = passkey.document(rng, count_words, length, ["A line of prose."] * 50)
        total = sum(count_words([content for _, content in turns]))
        assert length - FRAMES < total <= length
        text = turns[0][1]
        for role, content in turns[1:]:
            if role == "assistant":
                assert content.rstrip(".").split()[-1] in text


def test_a_conversation_alternates_and_remembers_its_name():
    named = 0
    for turns in dialogues.generate(0, 500):
        roles = [role for role, _ in turns if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        last = turns[-1][1]
        if last.startswith("Your name is "):
            name = last.removeprefix("Your name is ").rstrip(".")
            assert name in next(content for role, content in turns if role == "user")
            named += 1
    assert named > 3


def test_the_same_seed_makes_the_same_conversations():
    assert list(dialogues.generate(3, 20)) == list(dialogues.generate(3, 20))
    assert list(dialogues.generate(3, 20)) != list(dialogues.generate(4, 20))


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_training_words_a_request_as_the_server_does(system):
    """Every case of the exam, with and without a system message: the same prompt, to the letter."""
    source = json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"]
    template = ChatTemplate(source, {})
    for case in dialogues.exam(1, 8):
        messages = [*system, *case.messages]
        request = ChatRequest.model_validate({**case.as_json(), "messages": messages})
        assert greedy.prompt(messages, case.tools) == conversation(request, template)


def test_a_call_that_is_taught_is_one_that_the_server_reads():
    rng = random.Random(0)
    for _ in range(50):
        request = functions.request(rng)
        ((_, text),) = plain_turns([calls.called(request)], [])
        (call,) = parse(text, is_whole=True).calls
        assert call.name == request.name
        assert json.loads(call.arguments) == request.arguments
        expected = json.dumps({"name": request.name, "arguments": request.arguments})
        assert right("tool_call", expected, text)


@pytest.mark.parametrize(
    ("grade", "expected", "good", "bad"),
    [
        ("contains", "Paris", "It is paris.", "It is Rome."),
        ("number", "12", "5 + 7 = 12", "12 - 5 = 7"),
        ("number", "-3", "The answer is -3.", "The answer is 3."),
        ("number", "12", "12", "no number"),
        ("exact", "b, a", " b, a\n", "b, a, c"),
        ("json", '{"a": 1, "b": "x"}', '{"b":"x","a":1}', '{"a": 1}'),
        ("json", '{"a": 1}', '{"a": 1}', '{"a": 1'),
        (
            "tool_call",
            '{"name": "f", "arguments": {"x": 1}}',
            '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',
            '<tool_call>\n{"name": "f", "arguments": {"x": 2}}\n</tool_call>',
        ),
        ("contains", "Paris", "Paris", '<tool_call>\n{"name": "Paris"}\n</tool_call>'),
    ],
)
def test_grades(grade, expected, good, bad):
    assert right(grade, expected, good)
    assert not right(grade, expected, bad)


def test_the_exam_is_published_a_case_a_line(tmp_path):
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    asked = exam.cases(tokenizer, 3, 3, 500)
    exam.publish(tmp_path, asked)
    assert {path.stem for path in tmp_path.iterdir()} == {case.task for case in asked}
    lines = [json.loads(line) for line in (tmp_path / "tool_call.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(line["grade"] == "tool_call" and line["tools"] for line in lines)
    lengths = [
        len(tokenizer.encode(greedy.prompt(case.messages, [])).ids)
        for case in asked
        if case.task == "passkey"
    ]
    assert all(400 < length <= 500 for length in lengths), lengths
