"""One token budget over running and waiting requests. Knows counts and pages; knows no tensor.

There is no prefill mode and no decode mode: a request's computed tokens must catch up with its
tokens, in as many steps as the budget takes.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from .messages import Activity, TokenLogprobs
from .pages import PagePool, page_hashes
from .request import FinishReason, Request


class ScheduledRequest(NamedTuple):
    """`num_tokens` tokens of a request from position `start`; `samples`: it then has caught up."""

    request: Request
    start: int
    num_tokens: int
    samples: bool

    @property
    def end(self) -> int:
        return self.start + self.num_tokens


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one step computes, and which requests lost their pages to it."""

    items: list[ScheduledRequest]
    preempted: list[Request]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a settled step brought: a token for each of its items that sampled, in their order."""

    tokens: list[tuple[Request, int, TokenLogprobs | None]]
    scored: list[tuple[Request, list[TokenLogprobs]]] = field(
        default_factory=list[tuple[Request, list[TokenLogprobs]]]
    )
    ffn_mode: str = ""
    activity: Activity | None = None
    active: list[float] | None = None  # each item's sum over its tokens, where it was measured
    pages_read: float | None = None  # mean share of its pages that a token with a budget reads


@dataclass(slots=True)
class PrefixStats:
    """Prompt tokens looked up in the prefix cache, and found, since last asked."""

    num_queries: int = 0
    num_hits: int = 0


@dataclass(slots=True)
class Step:
    """A step being put together."""

    budget: int
    items: dict[str, ScheduledRequest] = field(default_factory=dict[str, ScheduledRequest])
    preempted: list[Request] = field(default_factory=list[Request])

    def add(self, request: Request, num_tokens: int, *, samples: bool) -> None:
        start = request.num_computed_tokens
        self.items[request.id] = ScheduledRequest(request, start, num_tokens, samples)
        self.budget -= num_tokens

    def drop(self, request: Request) -> None:
        item = self.items.pop(request.id, None)
        self.budget += 0 if item is None else item.num_tokens


class Scheduler:
    """Decides what each step computes: decodes first, then prefills, then newcomers in order.

    When no page is free the request that came last gives its pages back and waits in front; it
    resumes by computing again what the prefix cache has not kept.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of arrival
        self.failed: list[tuple[Request, str]] = []  # cannot be computed here; for core to report
        self.prefix = PrefixStats()
        self._num_arrived = 0
        self._arrival: dict[str, int] = {}
        # Prompt pages that a running request is computing now. Whoever waits for the same prefix
        # lets it finish instead of computing it twice: `n` choices and bursts with one prompt.
        self._pending: dict[bytes, str] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request, or note in `failed` why it can never run."""
        reason = self._never_fits(request)
        if reason is not None:
            self.failed.append((request, reason))
            return
        self._arrival[request.id] = self._num_arrived
        self._num_arrived += 1
        self.waiting.append(request)

    def _never_fits(self, request: Request) -> str | None:
        num_tokens = len(request.token_ids)
        if num_tokens >= self.max_model_len:
            return f"the prompt has {num_tokens} tokens, the context is {self.max_model_len}"
        if self.pool.pages_for(num_tokens + 1) > self.pool.num_pages:
            return self._too_small(num_tokens + 1)
        return None

    def _too_small(self, num_tokens: int) -> str:
        pool = self.pool
        return (
            f"the K/V pool of {pool.num_pages} pages ({pool.num_pages * pool.page_size} tokens) is "
            f"too small for this request of {num_tokens} tokens"
        )

    def next(self) -> Schedule:
        """Choose the tokens of the next step, allocate their pages."""
        step = Step(self.max_num_batched_tokens)
        decodes: list[Request] = []
        prefills: list[Request] = []
        for request in self.running:
            if not (self._has_all(request) or request.waits_for_its_token):
                (decodes if _need(request) == 1 else prefills).append(request)
        for request in decodes + prefills:
            preempted = not request.pages
            if step.budget and not preempted:
                self._continue(request, step)
        if not step.preempted:
            self._admit(step)
        return Schedule(list(step.items.values()), step.preempted)

    def _has_all(self, request: Request) -> bool:
        """Its last token is already on the way."""
        num_tokens = request.num_tokens
        most = request.num_prompt_tokens + request.sampling.max_tokens
        return num_tokens >= most or num_tokens >= self.max_model_len

    def _continue(self, request: Request, step: Step) -> None:
        need = _need(request)
        num_tokens = min(need, step.budget)
        num_pages = self._missing_pages(request, request.num_computed_tokens + num_tokens)
        if num_pages and not self._make_room(request, num_pages, step):
            return
        step.add(request, num_tokens, samples=num_tokens == need)

    def _make_room(self, request: Request, num_pages: int, step: Step) -> bool:
        """Allocate pages, those of whoever came last if need be; False if that is the request."""
        while not self.pool.can_allocate(num_pages):
            victim = self.running[-1]
            if victim is request and len(self.running) == 1:
                if request.num_in_flight == 0:  # else let it have the token that is on its way
                    self.failed.append((request, self._too_small(request.num_tokens)))
                return False
            self._preempt(victim, step)
            if victim is request:
                return False
        self.pool.allocate(request, num_pages)
        return True

    def _missing_pages(self, request: Request, num_tokens: int) -> int:
        return max(0, self.pool.pages_for(num_tokens) - len(request.pages))

    def _preempt(self, request: Request, step: Step) -> None:
        """Give its pages back and put it in front of those waiting; its tokens are kept."""
        step.drop(request)
        step.preempted.append(request)
        self._leave(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.waiting.appendleft(request)

    def _admit(self, step: Step) -> None:
        """Take waiting requests, in order, as long as rows, pages and budget last."""
        for request in list(self.waiting):
            if not step.budget or len(self.running) >= self.max_num_seqs:
                return
            shared = self._match(request)
            if shared is None:
                continue
            num_missing = self.pool.pages_for(request.num_tokens) - len(shared)
            if not self.pool.can_allocate(num_missing, shared):
                return
            self.waiting.remove(request)
            self._start(request, shared)
            need = _need(request)
            num_tokens = min(need, step.budget)
            end = request.num_computed_tokens + num_tokens
            self.pool.allocate(request, self._missing_pages(request, end))
            step.add(request, num_tokens, samples=num_tokens == need)

    def _match(self, request: Request) -> list[int] | None:
        """Pages that hold its prefix already; None if it had better wait for one being computed."""
        assert request.num_in_flight == 0, request.id
        if not self.pool.prefix_caching or not request.is_scored:
            return []
        size = self.pool.page_size
        self._hash_pages(request)
        usable = request.page_hashes[: (request.num_tokens - 1) // size]  # one token is to compute
        shared = self.pool.match(usable)
        if len(shared) < len(usable) and usable[len(shared)] in self._pending:
            return None
        return shared

    def _hash_pages(self, request: Request) -> None:
        """Hash what pages its tokens have filled since the last time."""
        request.page_hashes = page_hashes(
            request.token_ids, self.pool.page_size, request.page_hashes, request.page_salt
        )

    def _start(self, request: Request, shared: list[int]) -> None:
        self.pool.share(request, shared)
        request.num_computed_tokens = len(shared) * self.pool.page_size
        if request.num_preemptions == 0:
            request.started_at = time.perf_counter()
            request.num_cached_tokens = request.num_computed_tokens
            self.prefix.num_queries += request.num_tokens
            self.prefix.num_hits += request.num_cached_tokens
        num_offered = request.num_exact_tokens // self.pool.page_size
        for digest in request.page_hashes[len(shared) : num_offered]:
            self._pending.setdefault(digest, request.id)
        self.running.append(request)
        self.running.sort(key=lambda r: self._arrival[r.id])

    def publish(self, item: ScheduledRequest) -> None:
        """Offer the pages that a settled step has filled to others.

        Not those that hold K/V of tokens which did not read all of their context: they are this
        request's own, so that nobody's answer depends on who asked before.
        """
        request, size = item.request, self.pool.page_size
        first = item.start // size
        last = min(item.end, len(request.token_ids), request.num_exact_tokens) // size
        preempted = not request.pages
        if first < last and self.pool.prefix_caching and not preempted:
            self._hash_pages(request)
            for i in range(first, last):
                self.pool.publish(request.pages[i], request.page_hashes[i])
                self._pending.pop(request.page_hashes[i], None)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in whatever state; its pages are free at once."""
        if request in self.running:
            self._leave(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self._arrival.pop(request.id, None)
        request.finish = reason

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.free(request)
        for digest in request.page_hashes:
            if self._pending.get(digest) == request.id:
                del self._pending[digest]

    def check(self) -> None:
        """Assert that every page is accounted for."""
        self.pool.check(self.running)
        if not self.running:
            assert not self._pending, self._pending


def _need(request: Request) -> int:
    return request.num_tokens - request.num_computed_tokens
