"""What a route asks for: the service, and a body that says it is JSON."""

from __future__ import annotations

import re
from typing import Annotated, cast

from fastapi import Depends, Request

from .activity import ActivityFeed
from .errors import BadRequest, UnsupportedMediaType
from .readiness import Readiness
from .service import Service

# Half of a pair, escaped or raw; most often the other half of an emoji stands beside it.
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")


def service_of(request: Request) -> Service:
    """The one that `create_app` was given."""
    return request.app.state.service


def readiness_of(request: Request) -> Readiness:
    """The service's own."""
    return request.app.state.readiness


def activity_of(request: Request) -> ActivityFeed:
    """The service's own."""
    return request.app.state.activity


ActivityDependency = Annotated[ActivityFeed, Depends(activity_of)]
ReadinessDependency = Annotated[Readiness, Depends(readiness_of)]
ServiceDependency = Annotated[Service, Depends(service_of)]


async def require_json(request: Request) -> None:
    """Raise UnsupportedMediaType for anything else, curl's default among them; BadRequest for text
    that is none."""
    said = request.headers.get("content-type", "")
    if said.partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType(
            f"send the body as Content-Type: application/json, not {said or 'nothing'}"
        )
    if SURROGATE.search(await request.body()):
        found = _half_a_character(await request.json())
        if found is not None:
            raise BadRequest(f"{found} holds half of a surrogate pair, which is no text", found)


def _half_a_character(body: object) -> str | None:
    """Where a parsed body holds what no encoding can write: JSON can say "\\ud800"."""
    todo = [("", body)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, str) and not _is_text(value):
            return name
        if isinstance(value, dict):
            members = cast("dict[str, object]", value)
            if not all(map(_is_text, members)):
                return name or "the body"
            todo += [(f"{name}.{key}" if name else key, member) for key, member in members.items()]
        elif isinstance(value, list):
            items = cast("list[object]", value)
            todo += [(f"{name}[{i}]", item) for i, item in enumerate(items)]
    return None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
