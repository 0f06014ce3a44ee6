"""Minutes of clients that behave badly: they leave, stall, send nonsense; then: is anything left?

    python benchmarks/soak.py --seconds 600

Serves a checkpoint, the bundled one by default, in a process that can be asked what it holds. At
the end every page must be free, no task left, nothing open, every refusal of the right kind, and
the memory of both processes within 5 % of what it was after the first fifth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

import psutil
import uvicorn
from machine import facts

from turbosparse.engine import logs
from turbosparse.models.machine import processor
from turbosparse.server.app import Edge, create_app
from turbosparse.server.checkpoint import locate
from turbosparse.server.draining import Server
from turbosparse.server.header_limit import limited_protocol
from turbosparse.server.serve import loop_factory, start_service
from turbosparse.server.settings import Settings

# Few pages, so that all are touched early and requests are preempted; time for few requests.
SETTINGS = Settings(num_pages=600, max_num_seqs=24, max_queued_requests=64, request_timeout=10.0)
MAX_BODY = 100_000
SAMPLE_SECONDS = 2.0
FLAT = 0.05  # how much more memory the end may take


def host(asked: Connection, model: str | None) -> None:
    """The server's process; it answers "report" with what it holds."""
    logs.configure("error", "text")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_host(asked, model))


async def _host(asked: Connection, model: str | None) -> None:
    service = await start_service(SETTINGS, locate(model), None)
    app = create_app(service, Edge(max_body_bytes=MAX_BODY))
    protocol = limited_protocol(SETTINGS.max_header_bytes)
    config = uvicorn.Config(app, port=0, http=protocol, log_config=None, lifespan="off")
    server = Server(config, service, 5.0)
    server.on_started = lambda: asked.send(server.servers[0].sockets[0].getsockname()[1])

    def answer() -> None:
        if asked.recv() == "stop":
            server.stop()
            return
        stats = service.engine.stats
        asked.send(
            {
                "tasks": sorted(task.get_coro().__qualname__ for task in asyncio.all_tasks()),
                "connections": len(server.server_state.connections),
                "open": service.num_open,
                "streams": len(service.engine._streams),
                "running": stats.num_running,
                "waiting": stats.num_waiting,
                "pages_held": stats.num_pages_held,
            }
        )

    asyncio.get_running_loop().add_reader(asked.fileno(), answer)
    await server.serve()
    asyncio.get_running_loop().remove_reader(asked.fileno())
    await service.engine.close()


class Client:
    """One client; each of its methods is one way to behave."""

    def __init__(self, port: int, rng: random.Random, seen: Counter[str]) -> None:
        self.port, self.rng, self.seen = port, rng, seen

    async def live(self, until: float) -> None:
        while time.monotonic() < until:
            act = self.rng.choice(WAYS)
            try:
                async with asyncio.timeout(60):
                    status = await act(self)
            except (ConnectionError, asyncio.IncompleteReadError, IndexError, ValueError) as error:
                status = type(error).__name__
            self.seen[f"{act.__name__} {status}"] += 1

    def body(self, **more: object) -> dict[str, object]:
        """A request like many: now and then long, of several choices, with log-probabilities."""
        rng = self.rng
        prompt = [rng.randrange(10, 4000) for _ in range(rng.choice((5, 30, 30, 200, 700)))]
        found: dict[str, object] = {
            "prompt": prompt,
            "max_tokens": rng.choice((1, 20, 20, 60, 200)),
        }
        if rng.random() < 0.2:
            found |= {"n": 3}
        if rng.random() < 0.2:
            found |= {"logprobs": 3}
        if rng.random() < 0.2:
            found |= {"stop": ["the", "a"]}
        return found | more

    async def send(
        self, body: bytes, headers: str = "Content-Type: application/json"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return reader, writer

    async def status(self, reader: asyncio.StreamReader) -> str:
        return (await reader.readline()).split()[1].decode()

    async def whole_answer(self) -> str:
        reader, writer = await self.send(json.dumps(self.body()).encode())
        status = await self.status(reader)
        await reader.read()
        writer.close()
        return status

    async def whole_stream(self) -> str:
        reader, writer = await self.send(json.dumps(self.body(stream=True)).encode())
        status = await self.status(reader)
        rest = await reader.read()
        writer.close()
        done = status != "200" or b"data: [DONE]" in rest
        return status if done else "unfinished"

    async def slow_reader(self) -> str:
        reader, writer = await self.send(json.dumps(self.body(stream=True)).encode())
        status = await self.status(reader)
        while await reader.read(256):  # noqa: ASYNC110  (this is the reader's pace, no poll)
            await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        writer.close()
        return status

    async def stalled_reader(self) -> str:
        """Reads nothing for longer than a request may take, then leaves."""
        _, writer = await self.send(json.dumps(self.body(stream=True, n=8)).encode())
        await asyncio.sleep(self.rng.uniform(1, SETTINGS.request_timeout + 2))
        writer.close()
        return "left"

    async def leave_early(self) -> str:
        _, writer = await self.send(json.dumps(self.body(stream=True)).encode())
        await asyncio.sleep(self.rng.uniform(0, 0.05))
        writer.transport.abort()
        return "left"

    async def leave_midway(self) -> str:
        stream = self.rng.random() < 0.7
        reader, writer = await self.send(json.dumps(self.body(stream=stream)).encode())

        async def read_some() -> None:
            for _ in range(self.rng.randrange(1, 20)):
                await reader.readline()

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read_some(), self.rng.uniform(0.05, 1.0))
        writer.transport.abort()
        return "left"

    async def half_a_request(self) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{")
        await asyncio.sleep(self.rng.uniform(0, 0.3))
        writer.transport.abort()
        return "left"

    async def bad_body(self) -> str:
        bodies = (
            b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 9000, b'{"prompt": 7}',
            b'{"prompt": ""}', b'{"prompt": [99999999]}', b'{"prompt": "x", "n": 10000}',
            b'{"prompt": "x", "max_tokens": 99999}', b'{"prompt": "x", "temperature": "hot"}',
            b'{"prompt": "\\ud800"}', b"x" * (MAX_BODY + 1),
        )  # fmt: skip
        reader, writer = await self.send(self.rng.choice(bodies))
        status = await self.status(reader)
        writer.transport.abort()
        return status

    async def bad_request(self) -> str:
        lines = (
            b"HELLO\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000,
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.rng.choice(lines))
        status = await self.status(reader)
        writer.transport.abort()
        return status


Way = Callable[[Client], Awaitable[str]]
WAYS: tuple[Way, ...] = (
    Client.whole_answer,
    Client.whole_answer,
    Client.whole_stream,
    Client.whole_stream,
    Client.slow_reader,
    Client.stalled_reader,
    Client.leave_early,
    Client.leave_midway,
    Client.leave_midway,
    Client.half_a_request,
    Client.bad_body,
    Client.bad_request,
)
# 503: the queue is full. 504: a request that took too long, by design.
FINE = {"200", "400", "413", "431", "503", "504", "left"}


def last_step(port: int) -> None:
    """Stats come with a step: make one, so that they are those of the end."""
    asyncio.run(Client(port, random.Random(0), Counter()).whole_answer())


async def soak(port: int, seconds: float, num_clients: int, watch: Watch) -> Counter[str]:
    """Let the clients live; returns what happened to them."""
    seen: Counter[str] = Counter()
    until = time.monotonic() + seconds
    clients = [Client(port, random.Random(i), seen) for i in range(num_clients)]
    watching = asyncio.create_task(watch.sample())
    await asyncio.gather(*(client.live(until) for client in clients))
    watching.cancel()
    return seen


class Watch:
    """Memory of the server's two processes over time, in MiB of resident set."""

    def __init__(self, pid: int) -> None:
        api = psutil.Process(pid)
        engine = max(api.children(), key=lambda p: p.memory_info().rss)
        self.processes = {"api": api, "engine": engine}
        self.samples: dict[str, list[float]] = {name: [] for name in self.processes}

    async def sample(self) -> None:
        while True:
            for name, process in self.processes.items():
                self.samples[name].append(process.memory_info().rss / 2**20)
            await asyncio.sleep(SAMPLE_SECONDS)

    def growth(self, name: str) -> tuple[float, float]:
        """Medians of the second and of the last fifth of the time."""
        found = self.samples[name]
        fifth = max(1, len(found) // 5)
        return statistics.median(found[fifth : 2 * fifth]), statistics.median(found[-fifth:])


def rest(asked: Connection, port: int, seconds: float = 30.0) -> dict[str, object]:
    """What the server holds once its clients are gone, as soon as that is nothing."""
    end = time.monotonic() + seconds
    while True:
        last_step(port)
        asked.send("report")
        held = asked.recv()
        numbers = ("open", "streams", "connections", "pages_held")
        if not any(held[name] for name in numbers) or time.monotonic() > end:
            return held
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--commit")
    arguments = parser.parse_args()
    for fact, value in facts(processor(), arguments.commit).items():
        print(f"{fact}: {value}")
    context = multiprocessing.get_context("spawn")
    asked, theirs = context.Pipe()
    server = context.Process(target=host, args=(theirs, arguments.model))
    server.start()
    assert server.pid is not None
    try:
        port = asked.recv()
        # the first stream of all leaves a watcher of the library's behind, once
        asyncio.run(Client(port, random.Random(0), Counter()).whole_stream())
        before = rest(asked, port)
        watch = Watch(server.pid)
        seen = asyncio.run(soak(port, arguments.seconds, arguments.clients, watch))
        after = rest(asked, port)
        asked.send("stop")
        server.join(30)
    finally:
        server.kill()
    for what, count in sorted(seen.items()):
        print(f"{count:>8}  {what}")
    problems = [f"{n} x {what}" for what, n in seen.items() if what.split()[1] not in FINE]
    problems += [
        f"{name} left: {after[name]}, before: {before[name]}"
        for name in ("tasks", "connections", "open", "streams", "running", "waiting", "pages_held")
        if after[name] != before[name]
    ]
    if server.exitcode != 0:
        problems.append(f"the server ended with {server.exitcode}")
    for name in watch.samples:
        early, late = watch.growth(name)
        print(f"{name}: {early:.1f} MiB after the first fifth, {late:.1f} at the end")
        if late > early * (1 + FLAT):
            problems.append(f"{name} grew by {late / early - 1:.1%}")
    print("left at the end:", after)
    print("PROBLEMS: " + "; ".join(problems) if problems else "nothing is left, nothing unforeseen")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
