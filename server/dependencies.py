"""What a route asks for: the service, and a body that says it is JSON."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from .errors import UnsupportedMediaType
from .service import Service


def service_of(request: Request) -> Service:
    """The one that `create_app` was given."""
    return request.app.state.service


ServiceDependency = Annotated[Service, Depends(service_of)]


def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType for anything else: curl's default among them."""
    said = request.headers.get("content-type", "")
    if said.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            f"send the body as Content-Type: application/json, not {said or 'nothing'}"
        )
