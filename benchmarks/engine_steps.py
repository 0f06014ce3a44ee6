"""The engine's own loop, without HTTP: time to the first token, speed of a prompt, and what the
loop adds to a bare step: sampling, inputs, and a device that waits for the host.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from decode import PAGE_SIZE, Step, median_seconds
from rows import Row

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.core import EngineCore
from turbosparse.engine.messages import EngineInfo, Submit
from turbosparse.engine.pages import PagePool
from turbosparse.engine.request import SamplingParams
from turbosparse.engine.runner import Launched, ModelRunner, build_runner
from turbosparse.engine.scheduler import Scheduler
from turbosparse.models.decoder import Decoder

REPEATS = 7


@dataclass(frozen=True, slots=True)
class Engine:
    """A runner and its core; no two prompts that it is given share a prefix."""

    runner: ModelRunner
    info: EngineInfo
    core: EngineCore[Launched]

    @property
    def decoder(self) -> Decoder:
        return self.runner.decoder

    def rows(self, num_prompt: int) -> Iterator[Row]:
        """A prompt of this length, the first token of one of a quarter, and steps behind that."""
        short = num_prompt // 4

        def row(what: str, context: int, seconds: float, tokens: int, note: str) -> Row:
            return Row(what, "engine", 1, context, seconds * 1e3, tokens / seconds, note=note)

        seconds = first_token_seconds(self, num_prompt)
        yield row("prefill", num_prompt, seconds, num_prompt, "one step, exact, mask applied")
        for length in (short, max(2, num_prompt // 32)):
            seconds = first_token_seconds(self, length)
            yield row("first token", length, seconds, length, "from arrival to the host")
        looped = decode_step_seconds(self, short, num_steps=short // 2)
        bare = bare_step_seconds(self, short)
        gap = f"{max(0.0, 1 - bare / looped):.1%} beyond the bare step of {bare * 1e3:.3f} ms"
        yield row("host gap", short, looped, 1, gap)


def start(
    directory: Path, device: str, dtype: str, max_tokens: int, num_threads: int | None
) -> Engine:
    """An engine for one request at a time of up to `max_tokens`, each prompt in one step, of which
    those of up to 512 tokens are graphs."""
    config = EngineConfig(
        model=str(directory),
        device=device,
        dtype=dtype,
        max_num_seqs=1,
        max_num_batched_tokens=max_tokens,
        num_pages=2 * -(-max_tokens // PAGE_SIZE) + 1,
        page_size=PAGE_SIZE,
        prefix_caching=False,
        num_threads=num_threads,
    )
    runner, info = build_runner(config)
    scheduler = Scheduler(
        PagePool(info.num_pages, PAGE_SIZE, config.prefix_caching),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=info.max_model_len,
    )
    overlap = info.device != "cpu"
    return Engine(runner, info, EngineCore(runner, scheduler, info.eos_token_ids, overlap=overlap))


ids = count()


def _submit(engine: Engine, num_prompt: int, max_tokens: int) -> str:
    number = next(ids)
    generator = torch.Generator().manual_seed(number)
    prompt = torch.randint(0, engine.info.vocab_size, (num_prompt,), generator=generator).tolist()
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    engine.core.add(Submit(str(number), prompt, sampling))
    return str(number)


def _drain(engine: Engine) -> None:
    while engine.core.has_work:
        engine.core.step()


def first_token_seconds(engine: Engine, num_prompt: int) -> float:
    """Median time from a prompt's arrival to its first token on the host."""
    times: list[float] = []
    for _ in range(1 + REPEATS):
        _submit(engine, num_prompt, 1)
        started = time.perf_counter()
        while not any(o.token_id is not None for o in engine.core.step().outputs):
            pass
        times.append(time.perf_counter() - started)
        _drain(engine)
    return statistics.median(times[1:])  # the first one warms up


def decode_step_seconds(engine: Engine, context: int, num_steps: int) -> float:
    """Mean time of the engine's decode steps for one request, about `context` tokens long."""
    _submit(engine, context - num_steps // 2, num_steps)
    arrivals: list[float] = []
    while engine.core.has_work:
        if any(o.token_id is not None for o in engine.core.step().outputs):
            arrivals.append(time.perf_counter())
    assert len(arrivals) == num_steps, (len(arrivals), num_steps)
    settled = arrivals[num_steps // 4 :]
    return (settled[-1] - settled[0]) / (len(settled) - 1)


def bare_step_seconds(engine: Engine, context: int) -> float:
    """The same step without the loop: the engine's own graph, replayed as fast as it goes."""
    step, graphs = Step(engine.decoder, 1, context), engine.runner.graphs
    mode = engine.runner.policy.mode_for(1)
    if graphs is None:
        return step.seconds(mode)
    batch = step.batch(mode)
    return median_seconds(lambda: graphs.run(batch), engine.decoder.embedding.device)
