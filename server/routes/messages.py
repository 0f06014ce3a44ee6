"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's API."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from ..dependencies import ServiceDependency, require_json
from ..errors import renamed
from ..messages_schemas import FIELDS, CountRequest, MessagesRequest, to_chat
from ..messages_wire import MessagesDialect
from ..openapi import ASKING, STREAMING
from ..stream import respond

router = APIRouter(prefix="/v1", dependencies=[Depends(require_json)])


@router.post("/messages", responses=STREAMING)
async def messages(body: MessagesRequest, request: Request, service: ServiceDependency) -> Response:
    """The assistant's next turn, whole or streamed."""
    with renamed(FIELDS):
        generation = await service.chat(to_chat(body), id_prefix="msg_", call_prefix="toolu")
    return await respond(generation, MessagesDialect, request, stream=bool(body.stream))


@router.post("/messages/count_tokens", responses=ASKING)
async def count_tokens(body: CountRequest, service: ServiceDependency) -> dict[str, int]:
    """How many tokens the same conversation would be as a prompt."""
    service.check_model(body.model)
    with renamed(FIELDS):
        return {"input_tokens": len(await service.encode_chat(to_chat(body)))}
