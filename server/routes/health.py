"""GET /health: whether the engine lives, and what it is."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ..dependencies import ServiceDependency

router = APIRouter()


@router.get("/health")
async def health(service: ServiceDependency) -> JSONResponse:
    """200 with what runs, or 503 with why nothing does."""
    if service.engine.dead is not None:
        return JSONResponse({"status": "dead", "reason": service.engine.dead}, 503)
    return JSONResponse({"status": "ok", "engine": asdict(service.engine.info)})
