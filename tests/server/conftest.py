"""A real uvicorn on loopback over a real engine process that only repeats what it is told."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import echo_engine
import httpx
import pytest
import uvicorn

from turbosparse.engine.client import EngineClient
from turbosparse.engine.config import EngineConfig
from turbosparse.server.app import Edge, create_app
from turbosparse.server.chat_template import read_chat_template
from turbosparse.server.checkpoint import read_defaults
from turbosparse.server.draining import Server
from turbosparse.server.header_limit import limited_protocol
from turbosparse.server.serve import loop_factory
from turbosparse.server.service import Service
from turbosparse.server.tokenizer import read_tokenizer


def write_checkpoint(directory: Path, **generation_config: object) -> Path:
    """What the server reads of a checkpoint: all but the weights."""
    directory.mkdir(exist_ok=True)
    echo_engine.TOKENIZER.save(str(directory / "tokenizer.json"))
    settings = {"chat_template": echo_engine.CHAT_TEMPLATE, "bos_token": "<s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "generation_config.json").write_text(json.dumps(generation_config))
    return directory


class Running:
    """A server in a thread of its own, seen from outside by its URL, from inside by its service."""

    def __init__(self, directory: Path, limits: dict[str, float], edge: Edge | None) -> None:
        self._directory = directory
        self._limits = limits
        self._edge = edge
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(30)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        limits = {"max_num_seqs": 40, "max_queued_requests": 100, "max_body_bytes": 100_000}
        limits |= self._limits
        config = EngineConfig(
            model=str(self._directory),
            max_num_seqs=limits["max_num_seqs"],
            num_pages=limits.get("num_pages"),
        )
        engine = await EngineClient.start(config, "echo_engine:build")
        self.service = Service(
            engine,
            read_tokenizer(self._directory),
            read_chat_template(self._directory),
            names=["echo", "alias", "turbosparse-tiny"],
            defaults=read_defaults(self._directory),
            max_queued_requests=limits["max_queued_requests"],
            request_timeout=limits.get("request_timeout", 0),
        )
        edge = Edge(max_body_bytes=limits["max_body_bytes"])
        app = create_app(self.service, self._edge or edge)
        protocol = limited_protocol(limits.get("max_header_bytes", 8000))
        settings = uvicorn.Config(app, port=0, http=protocol, log_config=None, lifespan="off")
        self._server = Server(settings, self.service, limits.get("shutdown_timeout", 5))
        self._server.on_started = self._started.set
        self._loop = asyncio.get_running_loop()
        watching = asyncio.create_task(engine.watch(limits.get("step_timeout", 30)))
        await self._server.serve()
        watching.cancel()
        await engine.close()

    @property
    def url(self) -> str:
        host, port = self._server.servers[0].sockets[0].getsockname()
        return f"http://{host}:{port}"

    def chat(self, text: str, **fields: object) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        body = {"model": "echo", "messages": messages} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def say(self, text: str, **fields: object) -> dict:
        """A chat answer that must succeed: its first choice."""
        response = self.chat(f"say:{text}", **fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    def idle(self) -> bool:
        """Whether nothing runs, waits, holds a page or is counted as open."""
        stats = self.service.engine.stats
        busy = stats.num_running or stats.num_waiting or stats.num_pages_held
        return not busy and self.service._num_open == 0 and not self.service.engine._streams

    def wait_idle(self, seconds: float = 5.0) -> None:
        """The stats come with a step: one more request makes one."""
        end = threading.Event()
        for _ in range(int(seconds / 0.05)):
            if self.service.engine.dead is None and not self.service.engine._streams:
                self.say("x")
            if self.idle():
                return
            end.wait(0.05)
        raise AssertionError(self.service.engine.stats)

    def drain(self) -> None:
        """What SIGTERM does."""
        self._loop.call_soon_threadsafe(self._server.stop)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def running(directory: Path, edge: Edge | None = None, **limits: float) -> Iterator[Running]:
    server = Running(directory, limits, edge)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("echo"))


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[Running]:
    with running(checkpoint) as server:
        yield server


def events(response: httpx.Response) -> list[str]:
    """The data of every server-sent event."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.replace("\r\n", "\n").split("\n\n")
    return [b.removeprefix("data: ") for b in blocks if b.startswith("data: ")]
