"""From a parsed request to a Generation: admitted, encoded, submitted, and always ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from ..engine.client import EngineClient
from ..engine.errors import EngineDeadError
from ..engine.request import SamplingParams
from .chat_template import ChatTemplate
from .checkpoint import Defaults
from .conversation import conversation
from .detokenizer import Detokenizer
from .errors import BadRequest, EngineDead, ModelNotFound, Overloaded, ShuttingDown, TimedOut
from .generation import Choice, Generation
from .metrics import Ended, Metrics
from .refusals import refuse_unsupported
from .sampling import check_prompt, is_echo_only, sampling_params
from .schemas import INT64, ChatRequest, CompletionFields, CompletionRequest
from .structured import check, format_of, grammar_of
from .tokenizer import Tokenizer
from .tool_parser import ToolStream, new_id
from .tools import ToolPlan, plan_tools

T = TypeVar("T")
LONG_TEXT = 4000  # characters or tokens: beyond this, a millisecond of the event loop


class Service:
    """The way from a parsed request to a Generation."""

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        *,
        names: Sequence[str],
        defaults: Defaults,
        max_queued_requests: int,
        request_timeout: float = 0.0,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.names = tuple(names)
        self.metrics = Metrics(names[0], engine.info)
        self.draining = False  # what is open may end, nothing new begins
        self.on_ended: list[Callable[[Ended], None]] = [self.metrics.ended]
        self.created = int(time.time())
        self._template = template
        self._defaults = defaults
        self._max_open = engine.info.max_num_seqs + max_queued_requests
        self._num_open = 0
        self.idle = asyncio.Event()  # nothing is open
        self.idle.set()
        self._request_timeout = request_timeout
        engine.on_step.append(self.metrics.step)

    @property
    def num_open(self) -> int:
        """Choices that are being computed, waited for, or written out."""
        return self._num_open

    def check_model(self, model: str | None) -> str:
        """The name under which it is served; raises ModelNotFound. None means the only one."""
        if model is None:
            return self.names[0]
        if model not in self.names:
            known = ", ".join(self.names)
            raise ModelNotFound(f"the model {model!r} is not served here: {known}", "model")
        return model

    async def chat(
        self, request: ChatRequest, *, id_prefix: str = "chatcmpl-", call_prefix: str = "call"
    ) -> Generation:
        """Admit, encode, submit; raises ApiError. The prefixes are of ids: its own, its calls'."""
        model = self.check_model(request.model)
        refuse_unsupported(request)
        plan = plan_tools(request)
        with ExitStack() as resources:
            resources.enter_context(self._admitted(request.n or 1))
            grammar = await self._grammar(request, plan)
            prompt = await self.encode_chat(request)
            check_prompt(prompt, self.engine.info, "messages")
            tools = None
            if plan is not None:
                new = partial(new_id, call_prefix)
                tools = partial(
                    ToolStream, parallel=plan.parallel, new_id=new, calls_only=plan.must_call
                )
            return self._submit(
                id_prefix, model, request, [prompt], grammar, tools, resources.pop_all()
            )

    async def complete(self, request: CompletionRequest) -> Generation:
        """Admit, encode, submit; raises ApiError."""
        model = self.check_model(request.model)
        refuse_unsupported(request)
        given = request.prompts
        with ExitStack() as resources:
            resources.enter_context(self._admitted(len(given) * (request.n or 1)))
            grammar = await self._grammar(request, None)
            prompts: list[list[int]] = []
            for i, prompt in enumerate(given):
                name = f"prompt[{i}]" if len(given) > 1 else "prompt"
                if isinstance(prompt, str):
                    prompt = await self.encode(prompt, name, add_special_tokens=True)
                check_prompt(prompt, self.engine.info, name)
                prompts.append(prompt)
            return self._submit(
                "cmpl-", model, request, prompts, grammar, None, resources.pop_all()
            )

    async def _grammar(self, request: CompletionFields, plan: ToolPlan | None) -> str | None:
        """What the answer must follow; checked off the loop, since a large one takes long."""
        grammar = grammar_of(request, plan)
        if grammar is not None:
            wanted = format_of(request)
            field = "tools" if wanted is None else wanted.field
            await asyncio.to_thread(check, grammar, field)
        return grammar

    @contextmanager
    def _admitted(self, num_choices: int) -> Generator[None]:
        if self.engine.dead is not None:
            raise EngineDead(self.engine.dead)
        if self.draining:
            raise ShuttingDown("the server is shutting down and takes nothing new")
        if num_choices > self._max_open:
            raise BadRequest(f"{num_choices} choices are more than {self._max_open} at once", "n")
        if self._num_open + num_choices > self._max_open:
            self.metrics.refused()
            raise Overloaded(f"{self._num_open} requests are running or waiting: try again soon")
        self._count(num_choices)
        try:
            yield
        finally:
            self._count(-num_choices)

    def _count(self, num_choices: int) -> None:
        self._num_open += num_choices
        if self._num_open:
            self.idle.clear()
        else:
            self.idle.set()

    async def encode_chat(self, request: ChatRequest) -> list[int]:
        """The token ids of a conversation, as the model sees it; raises BadRequest."""
        if self._template is None:
            raise BadRequest("this model has no chat template: use /v1/completions", "messages")
        text = conversation(request, self._template)
        return await self.encode(text, "messages", add_special_tokens=False)

    async def encode(self, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # from JSON within JSON: a call's arguments
            raise BadRequest(f"{field} is not Unicode text: {error.reason}", field) from error
        return await _off_the_loop(encode, len(text))

    async def decode(self, token_ids: list[int]) -> str:
        """The text of ids, special tokens and all."""
        decode = partial(self.tokenizer.decode, token_ids, skip_special_tokens=False)
        return await _off_the_loop(decode, len(token_ids))

    async def token_texts(self, token_ids: list[int]) -> list[str]:
        """Each token by itself, U+FFFD for parts of characters."""

        def texts() -> list[str]:
            return [self.tokenizer.token_bytes(t).decode(errors="replace") for t in token_ids]

        return await _off_the_loop(texts, len(token_ids))

    def _submit(
        self,
        id_prefix: str,
        model: str,
        request: CompletionFields,
        prompts: list[list[int]],
        grammar: str | None,
        tools: Callable[[], ToolStream] | None,
        resources: ExitStack,
    ) -> Generation:
        """Hand every choice of every prompt to the engine; `resources` go with the generation."""
        id, n, started = f"{id_prefix}{uuid.uuid4().hex}", request.n or 1, time.perf_counter()
        num_prompt = sum(map(len, prompts))
        choices: list[Choice] = []
        with resources:
            info = self.engine.info
            samplings = [
                sampling_params(request, len(p), info, self._defaults, grammar) for p in prompts
            ]
            resources.callback(self._end, id, model, n, choices, num_prompt, started)
            self._limit_time(choices, resources)
            for prompt, sampling in zip(prompts, samplings, strict=True):
                for i in range(n):
                    try:
                        stream = self.engine.submit(
                            f"{id}-{len(choices)}", prompt, _seeded(sampling, i)
                        )
                    except EngineDeadError as error:
                        raise EngineDead(str(error)) from error
                    choice = Choice(
                        len(choices),
                        prompt,
                        stream,
                        self._detokenizer(request),
                        None if tools is None else tools(),
                        self.metrics,
                        started,
                        echo_only=is_echo_only(request),
                    )
                    choices.append(choice)
            return Generation(id, model, num_prompt, choices, n, self.engine, resources.pop_all())

    def _detokenizer(self, request: CompletionFields) -> Detokenizer:
        stop = request.stop
        return Detokenizer(
            self.tokenizer,
            (stop,) if isinstance(stop, str) else stop or (),
            include_stop=bool(request.include_stop_str_in_output),
            skip_special_tokens=request.skip_special_tokens is not False,
        )

    def _limit_time(self, choices: list[Choice], resources: ExitStack) -> None:
        if self._request_timeout:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._request_timeout, self._expire, choices)
            resources.callback(timer.cancel)

    def _expire(self, choices: list[Choice]) -> None:
        self.engine.abort([choice.stream.id for choice in choices])
        for choice in choices:
            limit = f"{self._request_timeout:g} seconds"
            choice.stream.fail(TimedOut(f"this request took longer than the {limit} it may take"))

    def _end(
        self, id: str, model: str, n: int, choices: list[Choice], num_prompt: int, started: float
    ) -> None:
        self.engine.abort([choice.stream.id for choice in choices])
        if not choices:
            return
        firsts = [choice.first_token_at for choice in choices if choice.first_token_at]
        ended = Ended(
            id=id,
            model=model,
            seconds=time.perf_counter() - started,
            num_prompt=num_prompt,
            num_generated=sum(choice.num_tokens for choice in choices),
            num_cached=sum(choice.num_cached_tokens for choice in choices[::n]),
            reasons=[choice.finish or "abort" for choice in choices],
            first_token_seconds=min(firsts) - started if firsts else None,
        )
        for listener in self.on_ended:
            listener(ended)


async def _off_the_loop(work: Callable[[], T], size: int) -> T:
    """Small work at once, large work on a thread."""
    return work() if size < LONG_TEXT else await asyncio.to_thread(work)


def _seeded(sampling: SamplingParams, i: int) -> SamplingParams:
    """The i-th choice's parameters: with one seed for all, all would say the same."""
    if sampling.seed is None or i == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + i) % INT64)
