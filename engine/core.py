"""The engine on one page: schedule, launch, settle, report. Knows no tensor and no pipe."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from .grammar import Constraint, GrammarError, Grammars
from .messages import Output, RequestTimes, StepOutput, StepStats, Submit, TokenLogprobs
from .request import FinishReason, Request
from .scheduler import PrefixStats, Sampled, Schedule, Scheduler

logger = logging.getLogger(__name__)
L = TypeVar("L")


class Runner(Protocol[L]):
    """What the engine needs of the model and its device; `L` is a step under way."""

    def launch(self, schedule: Schedule) -> L:
        """Start a step; what it samples stays on the device, where the next step finds it."""
        ...

    def settle(self, launched: L) -> Sampled:
        """Wait for a step and read what it sampled."""
        ...

    def release(self, request: Request) -> None:
        """The request gives its row back: it has ended, or was preempted."""
        ...

    def is_fatal(self, error: Exception) -> bool:
        """Whether the device is gone, so that no later step can succeed."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether a smaller step, or the same one later, may well succeed."""
        ...


class EngineCore(Generic[L]):
    """Owns the requests. One `step()` moves every one of them that the budget allows.

    With `overlap`, step N is launched before step N-1 is settled, so that an asynchronous device
    never waits for the host; a stop that is then found late discards one token. Without, each step
    is settled at once: right where launching is computing, as on a CPU.
    """

    def __init__(
        self,
        runner: Runner[L],
        scheduler: Scheduler,
        eos_token_ids: list[int],
        *,
        overlap: bool,
        grammars: Grammars | None = None,
        seed: int = 0,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.eos_token_ids = frozenset(eos_token_ids)
        self.overlap = overlap
        self.grammars = grammars
        self.requests: dict[str, Request] = {}
        self._compiling: list[tuple[Request, Constraint]] = []
        self._in_flight: tuple[Schedule, L] | None = None
        self._outputs: list[Output] = []
        self._ended: list[RequestTimes] = []
        self._seeds = random.Random(seed)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.has_work or self._in_flight or self._outputs)

    def add(self, submit: Submit) -> None:
        assert submit.id not in self.requests, submit.id
        sampling = submit.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=self._seeds.getrandbits(63))
        request = Request(submit.id, list(submit.prompt), sampling, len(submit.prompt))
        request.arrived_at = time.perf_counter()
        self.requests[request.id] = request
        if sampling.grammar is None:
            self.scheduler.add(request)
            self._report_failed()
            return
        assert self.grammars is not None, submit.id
        self._compiling.append((request, self.grammars.constraint(sampling.grammar)))
        self.add_compiled()

    @property
    def is_compiling(self) -> bool:
        """Some request waits for its grammar; nobody tells when it is ready."""
        return bool(self._compiling)

    def add_compiled(self) -> None:
        """Queue the requests whose grammars have become ready; end those whose cannot be."""
        compiling, self._compiling = self._compiling, []
        for request, constraint in compiling:
            if request.finish is not None:
                continue
            if not constraint.is_ready:
                self._compiling.append((request, constraint))
                continue
            try:
                constraint.start()
            except GrammarError as error:
                self._end(request, FinishReason.ERROR, f"the grammar: {error}")
                continue
            request.constraint = constraint
            self.scheduler.add(request)
        self._report_failed()

    def abort(self, ids: list[str]) -> None:
        """Forget these requests and say so; ids that have ended are ignored."""
        for request in [self.requests[id] for id in ids if id in self.requests]:
            self._end(request, FinishReason.ABORT)

    def reset_prefix_cache(self) -> None:
        """Forget what earlier prompts left; requests that run keep their pages."""
        self.scheduler.pool.reset()

    def step(self) -> StepOutput:
        """One turn of the engine: what it brought, and how it was spent."""
        started = time.perf_counter()
        schedule = self.scheduler.next()
        self._report_failed()
        launched = self._launch(schedule)
        if self.overlap:
            launched, self._in_flight = self._in_flight, launched
        sampled = self._settle(launched)
        stats = self._stats(schedule, sampled, time.perf_counter() - started)
        outputs, self._outputs = self._outputs, []
        return StepOutput(outputs, stats)

    def _launch(self, schedule: Schedule) -> tuple[Schedule, L] | None:
        for request in schedule.preempted:
            self.runner.release(request)
        if not schedule.items:
            return None
        try:
            launched = self.runner.launch(schedule)
        except Exception as error:
            self._fail(schedule, error)
            return None
        for item in schedule.items:
            unscored = item.request.unscored(item.start, item.end)
            item.request.num_scored_tokens += len(unscored)
            item.request.num_computed_tokens = item.end
            item.request.num_in_flight += item.samples
        return schedule, launched

    def _settle(self, launched: tuple[Schedule, L] | None) -> Sampled:
        if launched is None:
            return Sampled([])
        schedule, step = launched
        try:
            sampled = self.runner.settle(step)
        except Exception as error:
            self._fail(schedule, error)
            return Sampled([])
        for item, total in zip(schedule.items, sampled.active or (), strict=False):
            item.request.active_sum += total
            item.request.num_measured += item.num_tokens
        for request, scores in sampled.scored:
            if request.finish is None:
                self._outputs.append(Output(request.id, prompt_logprobs=scores))
        for request, token_id, logprobs in sampled.tokens:
            request.num_in_flight -= 1
            if request.finish is None:
                self._append(request, token_id, logprobs)
        for item in schedule.items:
            self.scheduler.publish(item)
        return sampled

    def _append(self, request: Request, token_id: int, logprobs: TokenLogprobs | None) -> None:
        request.token_ids.append(token_id)
        if not request.first_token_at:
            request.first_token_at = time.perf_counter()
        if request.constraint is not None:
            try:
                request.constraint.advance(token_id)
            except GrammarError as error:
                self._end(request, FinishReason.ERROR, f"the grammar: {error}")
                return
        finish = self._finish_reason(request, token_id)
        output = Output(request.id, token_id, logprobs, finish, request.num_cached_tokens)
        if finish is not None:
            output = output._replace(active_fraction=request.active_fraction)
            self._forget(request, finish)
        self._outputs.append(output)

    def _finish_reason(self, request: Request, token_id: int) -> FinishReason | None:
        s = request.sampling
        num_output = len(request.token_ids) - request.num_prompt_tokens
        if num_output > s.min_tokens and (
            token_id in s.stop_token_ids or (token_id in self.eos_token_ids and not s.ignore_eos)
        ):
            return FinishReason.STOP
        if num_output >= s.max_tokens or len(request.token_ids) >= self.scheduler.max_model_len:
            return FinishReason.LENGTH
        return None

    def _fail(self, schedule: Schedule, error: Exception) -> None:
        """End the requests of a step that raised; the others go on, unless the device is gone."""
        logger.exception("a step of %d requests failed", len(schedule.items))
        if self.runner.is_fatal(error):
            raise error
        message = f"the step failed: {type(error).__name__}: {error}"
        out_of_memory = self.runner.is_out_of_memory(error)
        for item in schedule.items:
            if item.request.finish is None:
                self._end(item.request, FinishReason.ERROR, message, out_of_memory)

    def _report_failed(self) -> None:
        failed, self.scheduler.failed = self.scheduler.failed, []
        for request, reason in failed:
            self._end(request, FinishReason.ERROR, reason)

    def _end(
        self,
        request: Request,
        finish: FinishReason,
        error: str | None = None,
        out_of_memory: bool = False,
    ) -> None:
        cached = request.num_cached_tokens
        self._outputs.append(
            Output(
                request.id,
                finish=finish,
                num_cached_tokens=cached,
                error=error,
                active_fraction=request.active_fraction,
                out_of_memory=out_of_memory,
            )
        )
        self._forget(request, finish)

    def _forget(self, request: Request, finish: FinishReason) -> None:
        self.scheduler.finish(request, finish)
        self.runner.release(request)
        del self.requests[request.id]
        if request.first_token_at:
            self._ended.append(_times(request))

    def _stats(self, schedule: Schedule, sampled: Sampled, seconds: float) -> StepStats:
        scheduler, pool = self.scheduler, self.scheduler.pool
        num_decode = sum(item.start >= item.request.num_prompt_tokens for item in schedule.items)
        prefix, scheduler.prefix = scheduler.prefix, PrefixStats()
        ended, self._ended = self._ended, []
        return StepStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            num_pages=pool.num_pages,
            num_pages_held=pool.num_held,
            num_prefill_tokens=schedule.num_tokens - num_decode,
            num_decode_tokens=num_decode,
            num_preemptions=len(schedule.preempted),
            num_prefix_queries=prefix.num_queries,
            num_prefix_hits=prefix.num_hits,
            step_seconds=seconds,
            ffn_mode=sampled.ffn_mode,
            activity=sampled.activity,
            pages_read=sampled.pages_read,
            ended=tuple(ended),
        )


def _times(request: Request) -> RequestTimes:
    """Of a request that got a token, as it ends."""
    return RequestTimes(
        request.started_at - request.arrived_at,
        request.first_token_at - request.started_at,
        time.perf_counter() - request.first_token_at,
        len(request.token_ids) - request.num_prompt_tokens,
    )
