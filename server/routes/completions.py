"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from ..dependencies import ServiceDependency, require_json
from ..schemas import CompletionRequest, refuse_unsupported
from ..stream import Form, respond
from ..wire import TextDialect

router = APIRouter(prefix="/v1")


@router.post("/completions", dependencies=[Depends(require_json)])
async def completions(
    body: CompletionRequest, request: Request, service: ServiceDependency
) -> Response:
    """What follows a text, whole or streamed."""
    refuse_unsupported(body)
    generation = await service.complete(body)
    form = Form(bool(body.stream), body.include_usage, body.logprobs is not None)
    return await respond(generation, TextDialect(service.tokenizer), form, request)
