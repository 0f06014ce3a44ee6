"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from ..dependencies import ServiceDependency, require_json
from ..schemas import ChatRequest, refuse_unsupported, refuse_unsupported_messages
from ..stream import Form, respond
from ..wire import ChatDialect

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", dependencies=[Depends(require_json)])
async def chat_completions(
    body: ChatRequest, request: Request, service: ServiceDependency
) -> Response:
    """The assistant's next turn, whole or streamed."""
    refuse_unsupported(body)
    refuse_unsupported_messages(body.messages)
    generation = await service.chat(body)
    form = Form(bool(body.stream), body.include_usage, bool(body.logprobs))
    return await respond(generation, ChatDialect(service.tokenizer), form, request)
