"""Questions with known answers, asked of a server greedily, task by task.

A file is JSON lines: `{"task", "messages", "tools", "expected", "grade"}`; tools may be absent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx

from ...models.fields import Json, is_list, is_object
from ...models.progress import bar
from ...models.tools.grading import GRADES, Said, is_right, parsed
from ..flags import SettingsError
from .client import ClientError

CONCURRENCY = 16
MAX_TOKENS = 256
NUM_MISTAKES = 5  # of each task that are kept


@dataclass(frozen=True, slots=True)
class Question:
    """One line of an exam."""

    task: str
    messages: list[Json]
    tools: list[Json]
    expected: str
    grade: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What was said to a question."""

    question: Question
    said: object  # for people
    right: bool
    num_tokens: int  # of the question and its answer


@dataclass(slots=True)
class TaskScore:
    """How many answers to a task's questions were right, and some that were not."""

    asked: int = 0
    right: int = 0
    mistakes: list[Json] = field(default_factory=list[Json])

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_exam(path: Path) -> list[Question]:
    """A file, or each `.jsonl` of a folder. Raises SettingsError, naming the line and the field."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    found = [question for file in files for question in _read(file)]
    if not found:
        raise SettingsError(f"--exam: {path} has no question")
    return found


def _read(file: Path) -> Iterator[Question]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--exam: {file} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line:
            yield _question(line, f"--exam: {file}, line {number}")


def _question(line: str, where: str) -> Question:
    try:
        asked: object = json.loads(line)
    except ValueError as error:
        raise SettingsError(f"{where}: not JSON: {error}") from error
    if not is_object(asked):
        raise SettingsError(f"{where}: not an object")
    unknown = asked.keys() - Question.__dataclass_fields__.keys()
    if unknown:
        raise SettingsError(f"{where}: {', '.join(sorted(unknown))} is not a field of a question")
    for name in ("task", "expected", "grade"):
        if not isinstance(asked.get(name), str):
            raise SettingsError(f"{where}: {name} must be a string")
    grade = str(asked["grade"])
    if grade not in GRADES:
        raise SettingsError(f"{where}: grade={grade!r} is not one of {', '.join(GRADES)}")
    messages = _objects(asked.get("messages"), "messages", where)
    if not messages:
        raise SettingsError(f"{where}: messages is empty")
    tools = _objects(asked.get("tools") or [], "tools", where)
    return Question(str(asked["task"]), messages, tools, str(asked["expected"]), grade)


def _objects(value: object, name: str, where: str) -> list[Json]:
    if not is_list(value) or not all(is_object(item) for item in value):
        raise SettingsError(f"{where}: {name} must be a list of objects")
    return cast("list[Json]", value)


async def take(url: str, key: str, questions: Sequence[Question], fields: Json) -> list[Answered]:
    """Ask everything; `fields` go into every request. Raises ClientError in the server's words."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limit = asyncio.Semaphore(CONCURRENCY)
    with bar("Asking", len(questions)) as advance:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=None) as http:

            async def ask(question: Question) -> Answered:
                async with limit:
                    answered = await _answer(http, question, fields)
                advance()
                return answered

            # all are asked before the first error is told: none is left running
            ended = await asyncio.gather(*map(ask, questions), return_exceptions=True)
    answered: list[Answered] = []
    for one in ended:
        if isinstance(one, BaseException):
            raise one
        answered.append(one)
    return answered


async def _answer(http: httpx.AsyncClient, question: Question, fields: Json) -> Answered:
    body: Json = {"messages": question.messages, "temperature": 0, "max_tokens": MAX_TOKENS}
    if question.tools:
        body["tools"] = question.tools
    try:
        response = await http.post("/v1/chat/completions", json={**body, **fields})
        said = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ClientError(f"no answer from the server: {error}") from error
    if not response.is_success:
        message = said.get("error", {}).get("message", response.text[:200])
        raise ClientError(f"{question.task}: {response.status_code}: {message}")
    answer: Json = said["choices"][0]["message"]
    return Answered(
        question,
        answer.get("tool_calls") or answer.get("content"),
        is_right(question.grade, question.expected, said_in(answer)),
        said["usage"]["total_tokens"],
    )


def score(answers: Iterable[Answered]) -> dict[str, TaskScore]:
    """By task, in the order in which they come."""
    scores: dict[str, TaskScore] = {}
    for answer in answers:
        _count(scores.setdefault(answer.question.task, TaskScore()), answer)
    return scores


def _count(score: TaskScore, answer: Answered) -> None:
    score.asked += 1
    if answer.right:
        score.right += 1
    elif len(score.mistakes) < NUM_MISTAKES:
        question = answer.question
        asked = question.messages[-1].get("content")
        score.mistakes.append({"asked": asked, "expected": question.expected, "said": answer.said})


def said_in(answer: Json) -> Said:
    """The assistant's message for the grader."""
    called = [
        cast("Json", call["function"])
        for call in cast("list[Json]", answer.get("tool_calls") or [])
    ]
    calls = [{"name": f["name"], "arguments": parsed(str(f["arguments"]))} for f in called]
    return Said(str(answer.get("content") or ""), tuple(calls))
