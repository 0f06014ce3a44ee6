"""GET /version and POST /reset_prefix_cache: the server about itself."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ... import __version__
from ...engine.errors import EngineDeadError
from ..dependencies import ServiceDependency
from ..errors import EngineDead
from ..openapi import refusing

router = APIRouter()


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.post("/reset_prefix_cache", response_class=Response, responses=refusing(503))
async def reset_prefix_cache(service: ServiceDependency) -> Response:
    """Forget the K/V of earlier prompts, for measurements; what runs is not disturbed."""
    try:
        service.engine.reset_prefix_cache()
    except EngineDeadError as error:
        raise EngineDead(str(error)) from error
    return Response(status_code=200)
