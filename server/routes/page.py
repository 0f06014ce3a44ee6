"""GET /: a page to chat with the model and watch its neurons. GET /activity: what it watches."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from sse_starlette import EventSourceResponse

from ..dependencies import ActivityDependency
from ..errors import NotFound

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parent.parent / "page"
FILES = frozenset(path.name for path in FOLDER.iterdir())
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/")
async def page() -> FileResponse:
    """The page; it asks nobody but this server."""
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/page/{name}")
async def part(name: str) -> FileResponse:
    """Its script and style."""
    if name not in FILES:
        raise NotFound(f"there is no GET /page/{name} here")
    return FileResponse(FOLDER / name, headers=HEADERS)


@router.get("/activity")
async def activity(feed: ActivityDependency) -> EventSourceResponse:
    """Server-sent events, four a second."""
    return EventSourceResponse(feed.events(), headers={"Cache-Control": "no-cache"})
