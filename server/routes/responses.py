"""POST /v1/responses: text, tools and streams of OpenAI's newer API; nothing is stored."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from ..dependencies import ServiceDependency, require_json
from ..errors import renamed
from ..openapi import STREAMING
from ..responses_schemas import FIELDS, ResponsesRequest, to_chat
from ..responses_wire import ResponsesDialect
from ..stream import respond

router = APIRouter(prefix="/v1")


@router.post("/responses", responses=STREAMING, dependencies=[Depends(require_json)])
async def responses(
    body: ResponsesRequest, request: Request, service: ServiceDependency
) -> Response:
    """The assistant's next turn, whole or streamed."""
    with renamed(FIELDS):
        generation = await service.chat(to_chat(body), id_prefix="resp_")
    speak = partial(ResponsesDialect, request=body)
    return await respond(generation, speak, request, stream=bool(body.stream))
