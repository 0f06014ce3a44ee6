"""A request's fields as the engine's SamplingParams: defaults filled in, ids, lengths checked."""

from __future__ import annotations

from typing import TypeVar

from ..engine.messages import EngineInfo
from ..engine.request import SamplingParams
from .checkpoint import Defaults
from .errors import BadRequest, TooLong
from .schemas import ChatRequest, CompletionFields, CompletionRequest

N = TypeVar("N", int, float)


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
    if max(prompt) >= info.vocab_size:
        raise BadRequest(
            f"{field} has token id {max(prompt)}, the vocabulary ends at {info.vocab_size - 1}",
            field,
        )


def sampling_params(
    request: CompletionFields, num_prompt: int, info: EngineInfo, defaults: Defaults
) -> SamplingParams:
    """What the engine needs to know; raises BadRequest and TooLong, naming the field."""
    max_tokens = _max_tokens(request, num_prompt, info, defaults)
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise BadRequest(
            f"min_tokens={min_tokens} is more than max_tokens={max_tokens}", "min_tokens"
        )
    stop_token_ids = tuple(request.stop_token_ids or ())
    for token_id in stop_token_ids:
        _check_id(token_id, info, "stop_token_ids")
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


def _logit_bias(request: CompletionFields, info: EngineInfo) -> tuple[tuple[int, float], ...]:
    pairs: list[tuple[int, float]] = []
    for key, bias in (request.logit_bias or {}).items():
        if not key.isdecimal():
            raise BadRequest(f"logit_bias has the key {key!r}, which is no token id", "logit_bias")
        _check_id(int(key), info, "logit_bias")
        pairs.append((int(key), bias))
    return tuple(pairs)


def _check_id(token_id: int, info: EngineInfo, field: str) -> None:
    if token_id >= info.vocab_size:
        raise BadRequest(
            f"{field} has token id {token_id}, the vocabulary ends at {info.vocab_size - 1}", field
        )
