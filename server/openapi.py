"""What `/openapi.json` says beyond the fields: the statuses of each route, and the error object."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

Responses = dict[int | str, dict[str, Any]]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail


WHY = {
    400: "A field is wrong or not supported; `param` names it",
    401: "The server asks for an API key",
    404: "Another model",
    413: "The body is too large",
    415: "The body is not sent as application/json",
    500: "The engine failed on this request",
    503: "The queue is full, memory ran out, or the engine is dead",
    504: "The request took longer than the server allows",
}


def refusing(*statuses: int) -> Responses:
    """The error statuses of a route."""
    return {status: {"model": ErrorBody, "description": WHY[status]} for status in statuses}


ASKING = refusing(*WHY)  # of whatever takes a body to the engine
EVENTS: dict[str, Any] = {
    "description": "The answer, or with `stream` its events",
    "content": {"text/event-stream": {}},
}
STREAMING: Responses = {200: EVENTS, **ASKING}


def document(app: FastAPI) -> None:
    """Leave out the 422 that FastAPI promises for every body: ours are 400."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return schema

    app.openapi = openapi
