"""The exam: held-out questions, as clients would send them. The same for every seed of training."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

from .corpus import token_counter
from .tasks import dialogues, passkey
from .tasks.exchange import Case

SEED = 0
PUBLISHED = 100  # of each task
PUBLISHED_KEYS = 20  # of the pass keys: 16 kB of text each


def cases(tokenizer: Tokenizer, per_task: int, num_keys: int, longest: int) -> list[Case]:
    """`per_task` cases of each task, and pass keys in prompts that fill a context of `longest`."""
    return [*dialogues.exam(SEED, per_task), *hidden(tokenizer, num_keys, longest)]


def hidden(tokenizer: Tokenizer, count: int, longest: int) -> list[Case]:
    """Pass keys anywhere in a text of about `longest` tokens."""
    tokens = token_counter(tokenizer)
    rng = random.Random(f"test {SEED} passkey")
    found: list[Case] = []
    while len(found) < count:
        case = passkey.exam_case(rng, tokens, longest)
        found += [case] if case else []
    return found


def publish(folder: Path, asked: list[Case]) -> None:
    """One file a task, a case a line, so that anyone can ask the same through a server.

    They are the first of those that were asked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_task: dict[str, list[Case]] = {}
    for case in asked:
        by_task.setdefault(case.task, []).append(case)
    for task, of_task in by_task.items():
        chosen = of_task[: PUBLISHED_KEYS if task == "passkey" else PUBLISHED]
        lines = [json.dumps(case.as_json(), ensure_ascii=False) + "\n" for case in chosen]
        (folder / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
