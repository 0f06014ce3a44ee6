"""POST /v1/completions."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from ..dependencies import ServiceDependency, require_json
from ..openapi import STREAMING
from ..schemas import CompletionRequest
from ..service import Service
from ..stream import respond
from ..wire import TextDialect

router = APIRouter(prefix="/v1")


@router.post("/completions", responses=STREAMING, dependencies=[Depends(require_json)])
async def completions(
    body: CompletionRequest, request: Request, service: ServiceDependency
) -> Response:
    """What follows a text, whole or streamed."""
    generation = await service.complete(body)
    speak = partial(
        TextDialect,
        tokenizer=service.tokenizer,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        logprobs=body.logprobs is not None,
        echoed=_echoed(body, service) if body.echo else (),
    )
    return await respond(generation, speak, request, stream=bool(body.stream))


def _echoed(body: CompletionRequest, service: Service) -> list[str]:
    """Each choice's prompt as text."""
    skip = body.skip_special_tokens is not False
    texts = [
        p if isinstance(p, str) else service.tokenizer.decode(p, skip_special_tokens=skip)
        for p in body.prompts
    ]
    return [text for text in texts for _ in range(body.n or 1)]
