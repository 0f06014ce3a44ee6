"""The server's life: bind, load, serve, drain, exit. Exit status 0 only when it was asked to go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass

import uvicorn
from sse_starlette.sse import AppStatus

from ..engine.client import EngineClient
from ..engine.messages import EngineInfo
from ..engine.process import DEFAULT_RUNNER
from .app import create_app
from .chat_template import read_chat_template
from .checkpoint import Located, locate, locate_predictors, read_defaults
from .service import Service
from .settings import Settings, SettingsError
from .tokenizer import read_tokenizer

logger = logging.getLogger(__name__)
DEAD_SECONDS = 2.0  # how long a server without an engine stays to say so
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that can fail before the engine is started has not failed."""

    settings: Settings
    model: Located
    predictors: str | None
    listening: socket.socket


def run(model: str | None, settings: Settings) -> int:
    """`turbosparse serve`: blocks until the server ends; returns the exit status.

    Raises SettingsError, CheckpointError and EngineStartError before the first request.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    prepared = Prepared(
        settings=settings,
        listening=_bind(settings.host, settings.port),
        model=locate(model),
        predictors=locate_predictors(settings.predictors),
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(serve(prepared))


async def serve(prepared: Prepared, build: str = DEFAULT_RUNNER) -> int:
    """Start the engine, answer until told to stop or until the engine dies."""
    settings, directory = prepared.settings, prepared.model.directory
    tokenizer, template = read_tokenizer(directory), read_chat_template(directory)
    defaults = read_defaults(directory)
    config = settings.engine(str(directory), prepared.predictors)
    starting = asyncio.create_task(EngineClient.start(config, build))
    _on_signal(starting.cancel)
    try:
        engine = await starting
    except asyncio.CancelledError:
        return 0  # told to stop while loading
    try:
        names = (settings.served_model_name or prepared.model.name).split(",")
        service = Service(
            engine,
            tokenizer,
            template,
            names=[name.strip() for name in names],
            defaults=defaults,
            max_queued_requests=settings.max_queued_requests,
        )
        app = create_app(service, max_body_bytes=settings.max_body_bytes)
        uvicorn_config = uvicorn.Config(
            app,
            log_config=None,
            access_log=settings.access_log,
            timeout_graceful_shutdown=settings.shutdown_timeout,
            lifespan="off",
        )
        host, port = prepared.listening.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server = Server(uvicorn_config, lambda: _say(banner(service.names[0], engine.info, url)))
        _on_signal(server.stop)
        watching = asyncio.create_task(_stop_when_dead(engine, server))
        try:
            await server.serve(sockets=[prepared.listening])
        finally:
            watching.cancel()
        return 0 if engine.dead is None else 1
    finally:
        await engine.close()


class Server(uvicorn.Server):
    """uvicorn, but signals are ours: it would raise them again at its end, and exit by them."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        # Streams end by themselves while we drain; sse-starlette would cut them at the signal.
        AppStatus.disable_automatic_graceful_drain()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def stop(self) -> None:
        """Accept nothing new and let open answers end; the second time, end them."""
        self.force_exit = self.should_exit
        self.should_exit = True


async def _stop_when_dead(engine: EngineClient, server: Server) -> None:
    reason = await engine.wait_dead()
    logger.critical("%s: the server ends", reason)
    await asyncio.sleep(DEAD_SECONDS)  # /health says 503 and open streams get their error
    server.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed."""
    return uvicorn.Config("", log_config=None).get_loop_factory()


def _on_signal(act: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, act)


def _bind(host: str, port: int) -> socket.socket:
    """Take the port before the model loads, so that a clash shows at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from error
    return listening


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def banner(name: str, info: EngineInfo, url: str) -> str:
    """What started, once, for the operator."""
    function = "exact" if info.exact else f"APPROXIMATE: {info.approximation}"
    kernels = ", ".join(f"{op} {kernel}" for op, kernel in sorted(info.kernels.items()))
    *smaller, (_, largest) = sorted(info.ffn_modes.items())
    modes = [f"{mode} up to {num_tokens} tokens in a step" for num_tokens, mode in smaller]
    num_tokens = info.num_pages * info.page_size
    concurrency = num_tokens / info.max_model_len
    synthetic = {} if info.synthetic is None else {"SYNTHETIC": info.synthetic}
    lines = {
        "model": f"{name} ({info.num_parameters / 1e6:,.1f} M parameters, {info.model})",
        **synthetic,
        "family": info.family,
        "function": function,
        "device": f"{info.device}, {info.dtype}",
        "kernels": kernels,
        "ffn modes": ", ".join([*modes, f"{largest} beyond" if modes else largest]),
        "pages": (
            f"{info.num_pages:,} of {info.page_size} = {num_tokens:,} tokens, "
            f"{concurrency:.1f} requests of {info.max_model_len:,}"
        ),
        "url": url,
    }
    return "\n".join(f"{label:>10}  {text}" for label, text in lines.items())
