"""POST /v1/chat/completions."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from ..dependencies import ServiceDependency, require_json
from ..openapi import STREAMING
from ..schemas import ChatRequest
from ..stream import respond
from ..wire import ChatDialect

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", responses=STREAMING, dependencies=[Depends(require_json)])
async def chat_completions(
    body: ChatRequest, request: Request, service: ServiceDependency
) -> Response:
    """The assistant's next turn, whole or streamed."""
    generation = await service.chat(body)
    speak = partial(
        ChatDialect,
        tokenizer=service.tokenizer,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
        logprobs=bool(body.logprobs),
    )
    return await respond(generation, speak, request, stream=bool(body.stream))
