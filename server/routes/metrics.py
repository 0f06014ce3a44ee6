"""GET /metrics, in Prometheus' text format."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ..dependencies import ServiceDependency

router = APIRouter()


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: ServiceDependency) -> Response:
    """Counters, gauges and histograms."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
