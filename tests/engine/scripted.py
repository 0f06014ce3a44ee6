"""A runner without a model. It keeps what each K/V slot holds, and "samples" a function of every
token that it can read there: reading a wrong, stale or foreign slot changes the text at once."""

from dataclasses import dataclass

from turbosparse.engine.core import EngineCore
from turbosparse.engine.messages import Submit
from turbosparse.engine.pages import PagePool
from turbosparse.engine.request import Request, SamplingParams
from turbosparse.engine.scheduler import Sampled, Schedule, Scheduler

VOCAB = 1000
EOS = 999


def next_token(tokens: list[int]) -> int:
    return sum((i + 1) * (t + 7) for i, t in enumerate(tokens)) % (VOCAB - 10)


def expected(prompt: list[int], max_tokens: int, stop: int | None = None) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(next_token(tokens))
        if tokens[-1] == stop:
            break
    return tokens[len(prompt) :]


@dataclass
class LaunchedStep:
    sampled: list[tuple[Request, int]]


class ScriptedRunner:
    def __init__(self, page_size: int, num_rows: int) -> None:
        self.page_size = page_size
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}  # (page, offset) -> (place, token)
        self.free_rows = list(range(num_rows))
        self.last_token: dict[int, int] = {}  # by row, as on a device
        self.fail_with: Exception | None = None
        self.fail_settling_with: Exception | None = None
        self.num_steps = 0
        self.token_counts: list[int] = []

    def launch(self, schedule: Schedule) -> LaunchedStep:
        if self.fail_with is not None:
            error, self.fail_with = self.fail_with, None
            raise error
        self.num_steps += 1
        self.token_counts.append(schedule.num_tokens)
        for item in schedule.items:
            if item.request.row is None:
                item.request.row = self.free_rows.pop()
        sampled = []
        for item in schedule.items:
            request = item.request
            for place in range(item.start, item.end):
                known = place < len(request.token_ids)
                token = request.token_ids[place] if known else self.last_token[request.row]
                self.slots[self.slot(request, place)] = (place, token)
            read = [self.slots[self.slot(request, place)] for place in range(item.end)]
            assert [place for place, _ in read] == list(range(item.end)), request.id
            if item.samples:
                sampled.append((request, next_token([token for _, token in read])))
        for request, token in sampled:
            self.last_token[request.row] = token
        return LaunchedStep(sampled)

    def slot(self, request: Request, place: int) -> tuple[int, int]:
        return request.pages[place // self.page_size], place % self.page_size

    def settle(self, launched: LaunchedStep) -> Sampled:
        if self.fail_settling_with is not None:
            error, self.fail_settling_with = self.fail_settling_with, None
            raise error
        return Sampled([(request, token, None) for request, token in launched.sampled])

    def release(self, request: Request) -> None:
        if request.row is not None:
            self.free_rows.append(request.row)
            request.row = None

    def is_fatal(self, error: Exception) -> bool:
        return isinstance(error, SystemError)

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)


def make_core(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    max_num_seqs: int = 40,
    budget: int = 32,
    max_model_len: int = 200,
    overlap: bool = False,
    prefix_caching: bool = True,
) -> EngineCore:
    scheduler = Scheduler(
        PagePool(num_pages, page_size, prefix_caching),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
    )
    runner = ScriptedRunner(page_size, max_num_seqs)
    return EngineCore(runner, scheduler, [EOS], overlap=overlap)


def submit(id: str, prompt: list[int], max_tokens: int = 8, **sampling) -> Submit:
    return Submit(id, prompt, SamplingParams(max_tokens=max_tokens, **sampling))


class Collected:
    """What each request has got so far."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.finish: dict[str, str] = {}
        self.errors: dict[str, str | None] = {}
        self.cached: dict[str, int] = {}

    def take(self, outputs) -> None:
        for output in outputs:
            assert output.id not in self.finish, "an output after the end"
            if output.token_id is not None:
                self.tokens.setdefault(output.id, []).append(output.token_id)
            if output.finish is not None:
                self.finish[output.id] = output.finish.value
                self.errors[output.id] = output.error
                self.cached[output.id] = output.num_cached_tokens


def run(core: EngineCore, limit: int = 2000) -> Collected:
    collected = Collected()
    for _ in range(limit):
        if not core.has_work:
            core.scheduler.check()
            assert core.scheduler.pool.num_held == 0
            return collected
        collected.take(core.step().outputs)
        core.scheduler.check()
    raise AssertionError(f"still working after {limit} steps")
