"""POST /tokenize and /detokenize: text to the model's token ids and back."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import ValidationError

from ..dependencies import ServiceDependency, require_json
from ..errors import BadRequest
from ..openapi import ASKING
from ..sampling import check_ids, context_length
from ..schemas import ChatRequest, DetokenizeRequest, TokenizeRequest

router = APIRouter(dependencies=[Depends(require_json)], responses=ASKING)


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceDependency) -> dict[str, object]:
    """The ids of a prompt, or of a conversation as the chat template writes it."""
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise BadRequest("give either prompt or messages", "prompt")
    if body.messages is not None:
        tokens = await service.encode_chat(_chat(body))
    else:
        special = body.add_special_tokens is not False
        tokens = await service.encode(body.prompt or "", "prompt", add_special_tokens=special)
    return {
        "count": len(tokens),
        "max_model_len": context_length(service.engine.info),
        "tokens": tokens,
        "token_strs": await service.token_texts(tokens) if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceDependency) -> dict[str, object]:
    """The text of ids, special tokens and all."""
    service.check_model(body.model)
    check_ids(body.tokens, service.engine.info, "tokens")
    return {"prompt": await service.decode(body.tokens)}


def _chat(body: TokenizeRequest) -> ChatRequest:
    """The same fields as a chat has, read again as one."""
    try:
        return ChatRequest.model_validate(
            body.model_dump(exclude_unset=True, exclude={"prompt", "add_special_tokens"})
        )
    except ValidationError as error:
        raise BadRequest(str(error)) from error
