"""The exam asked again of a server that reads a part of the context, by every kind and budget."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from ...models.fields import Json
from ...models.tools.evaluation import PagePlan
from .exam import Answered, score, take

READS_ALL: Json = {"sparsity": {"attention": "full"}}


def ask_again(url: str, key: str, info: Json, answers: list[Answered], plan: PagePlan) -> Json:
    """The exam by kind, budget and task, beside the same with all of the context: `answers`, where
    that is what the server does by itself.

    An answer whose context never was longer than the budget is the same by definition, and is
    not asked for again.
    """
    offered = cast("Json", info["attention"])
    if offered["mode"] != "full":
        questions = [answer.question for answer in answers]
        answers = asyncio.run(take(url, key, questions, READS_ALL))
    exempt = cast("int", offered["beyond"])
    longest: dict[str, int] = {}
    for answer in answers:
        task = answer.question.task
        longest[task] = max(longest.get(task, 0), answer.num_tokens)
    least = max(plan.budgets[0], exempt)
    concerned = [a for a in answers if longest[a.question.task] > least]
    kinds: dict[str, dict[int, Json]] = {kind: {} for kind in plan.kinds}
    for kind, by_budget in kinds.items():
        for budget in plan.budgets:
            asked = {"attention": kind, "page_budget": budget, "page_share": 1.0}
            covered = [a for a in concerned if a.num_tokens <= max(budget, exempt)]
            others = [a.question for a in concerned if a.num_tokens > max(budget, exempt)]
            again = asyncio.run(take(url, key, others, {"sparsity": asked}))
            by_budget[budget] = _scores(covered, again)
    full = {task: found.as_json() for task, found in score(concerned).items()}
    tasks = {
        task: {"asked": found["asked"], "right": found["right"], "longest": longest[task]}
        for task, found in full.items()
    }
    return {
        "page_size": plan.page_size,
        "tasks": tasks,
        "num_covered_tasks": len(longest) - len(tasks),
        "kinds": kinds,
    }


def _scores(covered: list[Answered], again: list[Answered]) -> Json:
    """By task, in their order; mistakes are of those that were asked again."""
    mistakes = score(again)
    found: dict[str, Any] = {}
    for task, total in score([*covered, *again]).items():
        own = mistakes.get(task)
        num_again = own.asked if own else 0
        found[task] = total.as_json() | {
            "covered": total.asked - num_again,
            "mistakes": own.mistakes if own else [],
        }
    return found
