"""From a parsed request to a Generation: admitted, encoded, submitted, and always ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from ..engine.client import EngineClient
from ..engine.errors import EngineDeadError
from ..engine.request import SamplingParams
from .chat_template import ChatTemplate, Message, TemplateRefused
from .checkpoint import Defaults
from .detokenizer import Detokenizer
from .errors import BadRequest, EngineDead, ModelNotFound, Overloaded
from .generation import Choice, Generation
from .metrics import Metrics
from .sampling import check_prompt, sampling_params
from .schemas import INT64, ChatMessage, ChatRequest, CompletionFields, CompletionRequest
from .tokenizer import Tokenizer

LONG_TEXT = 4000  # characters: beyond this, encoding would hold up the event loop for a millisecond


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
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.names = tuple(names)
        self.metrics = Metrics(names[0])
        self.created = int(time.time())
        self._template = template
        self._defaults = defaults
        self._max_open = engine.info.max_num_seqs + max_queued_requests
        self._num_open = 0
        engine.on_step.append(self.metrics.step)

    def check_model(self, model: str | None) -> str:
        """The name under which it is served; raises ModelNotFound. None means the only one."""
        if model is None:
            return self.names[0]
        if model not in self.names:
            known = ", ".join(self.names)
            raise ModelNotFound(f"the model {model!r} is not served here: {known}", "model")
        return model

    async def chat(self, request: ChatRequest) -> Generation:
        """Admit, encode, submit; raises ApiError."""
        model = self.check_model(request.model)
        with ExitStack() as resources:
            resources.enter_context(self._admitted(request.n or 1))
            prompt = await self._encode_chat(request.messages)
            check_prompt(prompt, self.engine.info, "messages")
            return self._submit("chatcmpl", model, request, [prompt], resources.pop_all())

    async def complete(self, request: CompletionRequest) -> Generation:
        """Admit, encode, submit; raises ApiError."""
        model = self.check_model(request.model)
        given = request.prompts
        with ExitStack() as resources:
            resources.enter_context(self._admitted(len(given) * (request.n or 1)))
            prompts: list[list[int]] = []
            for i, prompt in enumerate(given):
                name = f"prompt[{i}]" if len(given) > 1 else "prompt"
                if isinstance(prompt, str):
                    prompt = await self._encode(prompt, name, add_special_tokens=True)
                check_prompt(prompt, self.engine.info, name)
                prompts.append(prompt)
            return self._submit("cmpl", model, request, prompts, resources.pop_all())

    @contextmanager
    def _admitted(self, num_choices: int) -> Generator[None]:
        if self.engine.dead is not None:
            raise EngineDead(self.engine.dead)
        if num_choices > self._max_open:
            raise BadRequest(f"{num_choices} choices are more than {self._max_open} at once", "n")
        if self._num_open + num_choices > self._max_open:
            self.metrics.refused()
            raise Overloaded(f"{self._num_open} requests are running or waiting: try again soon")
        self._num_open += num_choices
        try:
            yield
        finally:
            self._num_open -= num_choices

    async def _encode_chat(self, messages: list[ChatMessage]) -> list[int]:
        template = self._template
        if template is None:
            raise BadRequest("this model has no chat template: use /v1/completions", "messages")
        turns = [_turn(message) for message in messages]
        try:
            text = template.render(turns)
        except TemplateRefused as error:
            raise BadRequest(
                f"the chat template refuses these messages: {error}", "messages"
            ) from error
        return await self._encode(text, "messages", add_special_tokens=False)

    async def _encode(self, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can say "\ud800"
            raise BadRequest(f"{field} is not Unicode text: {error.reason}", field) from error
        return encode() if len(text) < LONG_TEXT else await asyncio.to_thread(encode)

    def _submit(
        self,
        kind: str,
        model: str,
        request: CompletionFields,
        prompts: list[list[int]],
        resources: ExitStack,
    ) -> Generation:
        """Hand every choice of every prompt to the engine; `resources` go with the generation."""
        id, n, started = f"{kind}-{uuid.uuid4().hex}", request.n or 1, time.perf_counter()
        num_prompt = sum(map(len, prompts))
        choices: list[Choice] = []
        with resources:
            info = self.engine.info
            samplings = [sampling_params(request, len(p), info, self._defaults) for p in prompts]
            resources.callback(self._end, choices, num_prompt, started)
            for prompt, sampling in zip(prompts, samplings, strict=True):
                for i in range(n):
                    try:
                        stream = self.engine.submit(
                            f"{id}-{len(choices)}", prompt, _seeded(sampling, i)
                        )
                    except EngineDeadError as error:
                        raise EngineDead(str(error)) from error
                    detokenizer = self._detokenizer(request)
                    choices.append(Choice(len(choices), stream, detokenizer, self.metrics, started))
            return Generation(id, model, num_prompt, choices, n, self.engine, resources.pop_all())

    def _detokenizer(self, request: CompletionFields) -> Detokenizer:
        stop = request.stop
        return Detokenizer(
            self.tokenizer,
            (stop,) if isinstance(stop, str) else stop or (),
            include_stop=bool(request.include_stop_str_in_output),
            skip_special_tokens=request.skip_special_tokens is not False,
        )

    def _end(self, choices: list[Choice], num_prompt: int, started: float) -> None:
        self.engine.abort([choice.stream.id for choice in choices])
        if choices:
            self.metrics.ended(
                time.perf_counter() - started,
                num_prompt,
                sum(choice.num_tokens for choice in choices),
                [choice.finish or "abort" for choice in choices],
            )


def _turn(message: ChatMessage) -> Message:
    """A message as templates expect it: plain text, and whatever else the client put there."""
    role = "system" if message.role == "developer" else message.role
    return {**(message.model_extra or {}), "role": role, "content": message.text}


def _seeded(sampling: SamplingParams, i: int) -> SamplingParams:
    """The i-th choice's parameters: with one seed for all, all would say the same."""
    if sampling.seed is None or i == 0:
        return sampling
    return replace(sampling, seed=(sampling.seed + i) % INT64)
