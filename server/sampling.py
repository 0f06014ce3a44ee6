"""A request's fields as the engine's SamplingParams: defaults filled in, ids, lengths checked."""

from __future__ import annotations

import math
from typing import TypeVar

from ..engine.messages import EngineInfo
from ..engine.request import SamplingParams
from .checkpoint import Defaults
from .errors import BadRequest, TooLong
from .page_choice import page_choice
from .schemas import ChatRequest, CompletionFields, CompletionRequest, Sparsity

N = TypeVar("N", int, float)
MAX_DIGITS = 12  # of a token id


def context_length(info: EngineInfo) -> int:
    """Tokens that one request may have: the model's context, or all pages if they hold less."""
    return min(info.max_model_len, info.num_pages * info.page_size)


def check_prompt(prompt: list[int], info: EngineInfo, field: str) -> None:
    """Raise for a prompt that is empty, too long, or not of this vocabulary."""
    if not prompt:
        raise BadRequest(f"{field} has no tokens", field)
    limit = context_length(info)
    if len(prompt) >= limit:
        raise TooLong(field, limit=limit, num_prompt=len(prompt))
    check_ids(prompt, info, field)


def check_ids(token_ids: list[int], info: EngineInfo, field: str) -> None:
    """Raise for an id that is not of this vocabulary."""
    if token_ids and max(token_ids) >= info.vocab_size:
        raise BadRequest(
            f"{field} has token id {max(token_ids)}, the vocabulary ends at {info.vocab_size - 1}",
            field,
        )


def sampling_params(
    request: CompletionFields,
    num_prompt: int,
    info: EngineInfo,
    defaults: Defaults,
    grammar: str | None = None,
) -> SamplingParams:
    """What the engine needs to know; raises BadRequest and TooLong, naming the field."""
    max_tokens = _max_tokens(request, num_prompt, info, defaults)
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequest(
            f"min_tokens={min_tokens} is more than max_tokens={max_tokens}", "min_tokens"
        )
    stop_token_ids = tuple(request.stop_token_ids or ())
    check_ids([*stop_token_ids], info, "stop_token_ids")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        top_k=max(0, _or(request.top_k, defaults.top_k)),  # -1 is vLLM's word for off
        min_p=_or(request.min_p, defaults.min_p),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=_logit_bias(request, info),
        seed=request.seed,
        min_tokens=min_tokens,
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=stop_token_ids,
        logprobs=_logprobs(request),
        prompt_logprobs=_prompt_logprobs(request),
        grammar=grammar,
        threshold=threshold(request.sparsity, info),
        pages=page_choice(request.sparsity, info),
        report_active=request.sparsity is not None and bool(request.sparsity.report),
        cache_salt=request.cache_salt or "",
    )


def _or(value: N | None, default: N) -> N:
    return default if value is None else value


def _max_tokens(
    request: CompletionFields, num_prompt: int, info: EngineInfo, defaults: Defaults
) -> int:
    """What was asked for, if it fits; else all that is left, or what the model's makers allow."""
    limit = context_length(info)
    field, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
        field, asked = "max_completion_tokens", request.max_completion_tokens
    if asked == 0:
        if not is_echo_only(request):
            raise BadRequest("max_tokens=0 is only allowed with echo: true", field)
        asked = 1  # the engine always samples one; nobody is shown it
    if asked is None:
        return min(limit - num_prompt, defaults.max_tokens or limit)
    if num_prompt + asked > limit:
        raise TooLong(field, limit=limit, num_prompt=num_prompt, num_output=asked)
    return asked


def _logprobs(request: CompletionFields) -> int | None:
    match request:
        case ChatRequest(logprobs=True):
            return request.top_logprobs or 0
        case ChatRequest():
            if request.top_logprobs is not None:
                raise BadRequest("top_logprobs is only allowed with logprobs: true", "top_logprobs")
            return None
        case CompletionRequest():
            return request.logprobs
        case _:
            raise AssertionError(request)


def is_echo_only(request: CompletionFields) -> bool:
    """Nothing is to be generated: the prompt is wanted back, and what the model thinks of it."""
    return isinstance(request, CompletionRequest) and bool(request.echo) and request.max_tokens == 0


def _prompt_logprobs(request: CompletionFields) -> int | None:
    """With echo, the prompt's tokens get what the answer's get."""
    if isinstance(request, CompletionRequest) and request.echo:
        return request.logprobs
    return None


def threshold(sparsity: Sparsity | None, info: EngineInfo) -> float | None:
    """What the predictors' scores must exceed for this request, None for the model's own; raises
    BadRequest for what this model cannot be."""
    if sparsity is None:
        return None
    if sparsity.report and not info.sparse:
        raise BadRequest("sparsity.report: this model skips nothing", "sparsity.report")
    if sparsity.mode != "approximate":
        if sparsity.threshold is not None:
            field = "sparsity.threshold"
            raise BadRequest(f"{field} is only allowed with mode: approximate", field)
        return _exact(info) if sparsity.mode == "exact" else None
    if info.predictors is None:
        raise BadRequest("sparsity.mode: this model has no predictor", "sparsity.mode")
    is_exact = not info.predictors.separate and info.predictors.rounded_to is None
    if sparsity.threshold is None and is_exact:
        raise BadRequest(
            "sparsity.threshold is missing: this model's own predictor, at its own threshold of "
            f"{info.predictors.thresholds[0]:g}, is part of the exact model",
            "sparsity.threshold",
        )
    return sparsity.threshold


def _exact(info: EngineInfo) -> float | None:
    """Separate predictors are made to keep every neuron; what a checkpoint's own have dropped is
    lost with the weights that dropped it."""
    predictors = info.predictors
    if predictors is None:
        return None
    if predictors.separate:
        return -math.inf
    if predictors.rounded_to is not None:
        raise BadRequest(
            "sparsity.mode: exact is this model's own predictor as it was trained, and here it is "
            f"rounded to {predictors.rounded_to} (--predictor-dtype)",
            "sparsity.mode",
        )
    return None


def _logit_bias(request: CompletionFields, info: EngineInfo) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for key, bias in (request.logit_bias or {}).items():
        if not key.isdecimal() or len(key) > MAX_DIGITS:
            said = f"logit_bias has the key {key[:MAX_DIGITS]!r}, which is no token id"
            raise BadRequest(said, "logit_bias")
        check_ids([int(key)], info, "logit_bias")
        pairs.append((int(key), bias))
    return tuple(pairs)
