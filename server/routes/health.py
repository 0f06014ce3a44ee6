"""GET /health: whether the engine lives, and what it is. GET /ready: whether to send requests."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ..dependencies import ReadinessDependency, ServiceDependency
from ..errors import EngineDead, NotReady, ShuttingDown

router = APIRouter()
UNAVAILABLE: dict[int | str, dict[str, object]] = {503: {"description": "with the reason"}}


@router.get("/health", responses=UNAVAILABLE)
async def health(service: ServiceDependency) -> JSONResponse:
    """200 with what runs, or 503 with why nothing does."""
    if service.engine.dead is not None:
        raise EngineDead(service.engine.dead)
    return JSONResponse({"status": "ok", "engine": asdict(service.engine.info)})


@router.get("/ready", responses=UNAVAILABLE)
async def ready(service: ServiceDependency, readiness: ReadinessDependency) -> JSONResponse:
    """200 once a token can be made; 503 with why none can, or while the server shuts down."""
    if service.draining:
        raise ShuttingDown("the server is shutting down")
    problem = await readiness.problem()
    if problem is not None:
        raise NotReady(problem)
    return JSONResponse({"status": "ready"})
