"""`turbosparse run-batch`: a file of requests in OpenAI's batch format, answered without a network.

The engine runs at full width, and the requests go through the very application that `serve` serves:
what it refuses is refused here, by the same words.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import httpx

from ...engine import logs
from ...models.fields import Json, is_object
from ...models.progress import bar
from .. import flags
from ..app import Edge, create_app
from ..checkpoint import locate, locate_gates, locate_predictors
from ..flags import SettingsError, flag
from ..serve import start_service
from ..service import Service
from ..settings import Settings

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings(Settings):
    """How to run the model, and the files."""

    input_file: str | None = flag(None, "requests, one JSON object a line", short="-i")
    output_file: str | None = flag(None, "where the answers go, as they come", short="-o")


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the file, or what is wrong with it."""

    custom_id: object
    url: str = ""
    body: Json | None = None
    problem: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_arguments(parser, BatchSettings)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises SettingsError, CheckpointError, EngineStartError."""
    settings = flags.read(BatchSettings, vars(arguments))
    logs.configure(settings.log_level, settings.log_format)
    if settings.input_file is None or settings.output_file is None:
        raise SettingsError("--input-file and --output-file must both be given")
    try:
        lines = list(_lines(Path(settings.input_file).read_text("utf-8")))
        with open(settings.output_file, "w", encoding="utf-8") as output:
            num_refused = asyncio.run(_answer_all(settings, lines, output))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--input-file, --output-file: {error}") from error
    sys.stderr.write(f"{len(lines) - num_refused} answered, {num_refused} refused\n")
    return 0


def _lines(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        if line.strip():
            yield _parse(line)


def _parse(text: str) -> Line:
    try:
        asked: object = json.loads(text)
    except ValueError as error:
        return Line(None, problem=f"the line is not JSON: {error}")
    if not is_object(asked) or "custom_id" not in asked:
        return Line(None, problem="the line is no object with a custom_id")
    id, url, body = asked["custom_id"], asked.get("url"), asked.get("body")
    if asked.get("method") != "POST" or url not in URLS:
        return Line(id, problem=f"method and url must be POST and one of {', '.join(URLS)}")
    if not is_object(body):
        return Line(id, problem="body is not an object")
    if body.get("stream"):
        return Line(id, problem="body.stream: a batch has no streams")
    return Line(id, str(url), body)


async def _answer_all(settings: Settings, lines: list[Line], output: TextIO) -> int:
    """Write an answer for every line; returns how many were refused."""
    settings = replace(settings, attention_gates=locate_gates(settings.attention_gates))
    service = await start_service(
        settings, locate(settings.model), locate_predictors(settings.predictors)
    )
    try:
        with bar("Answering", len(lines)) as advance:
            return await _through(service, settings, lines, output, advance)
    finally:
        await service.engine.close()


async def _through(
    service: Service,
    settings: Settings,
    lines: list[Line],
    output: TextIO,
    advance: Callable[[], None],
) -> int:
    app = create_app(service, Edge(max_body_bytes=sys.maxsize))
    width = asyncio.Semaphore(settings.max_num_seqs + settings.max_queued_requests)
    num_refused = 0
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://batch", timeout=None
    ) as http:

        async def answer(line: Line) -> None:
            nonlocal num_refused
            async with width:
                found = await _answer(http, line)
            num_refused += found["error"] is not None or found["response"]["status_code"] != 200
            output.write(json.dumps(found, ensure_ascii=False) + "\n")
            output.flush()
            advance()

        async with asyncio.TaskGroup() as group:
            for line in lines:
                group.create_task(answer(line))
    return num_refused


async def _answer(http: httpx.AsyncClient, line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": None,
        "error": None,
    }
    if line.problem is not None:
        found["error"] = {"code": "invalid_request", "message": line.problem}
        return found
    response = await http.post(line.url, json=line.body)
    found["response"] = {
        "status_code": response.status_code,
        "request_id": response.headers["x-request-id"],
        "body": response.json(),
    }
    return found
