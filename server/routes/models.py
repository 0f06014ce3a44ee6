"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from ..dependencies import ServiceDependency
from ..openapi import refusing
from ..service import Service

router = APIRouter(prefix="/v1")


@router.get("/models")
async def list_models(service: ServiceDependency) -> dict[str, object]:
    """The names under which the one model is served."""
    return {"object": "list", "data": [_card(service, name) for name in service.names]}


@router.get("/models/{model:path}", responses=refusing(404))
async def retrieve_model(model: str, service: ServiceDependency) -> dict[str, object]:
    """One of them."""
    return _card(service, service.check_model(model))


def _card(service: Service, name: str) -> dict[str, object]:
    info = service.engine.info
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "turbosparse",
        "root": info.model,
        "max_model_len": info.max_model_len,
        "exact": info.exact,
        "approximation": info.approximation,
        "predictors": None if info.predictors is None else asdict(info.predictors),
        "attention": None if info.attention is None else asdict(info.attention),
        "synthetic": info.synthetic,
    }
