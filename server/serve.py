"""The server's life: bind, load, serve, drain, exit. Exit status 0 only when it was asked to go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, replace

import uvicorn
from fastapi import FastAPI

from .. import __version__
from ..engine import logs
from ..engine.client import EngineClient
from ..engine.process import DEFAULT_RUNNER
from . import flags
from .app import Edge, create_app
from .banner import banner
from .chat_template import read_chat_template
from .checkpoint import Located, locate, locate_gates, locate_predictors, read_defaults
from .draining import GOODBYE_SECONDS, Server
from .flags import SettingsError
from .header_limit import limited_protocol
from .service import Service
from .settings import Settings
from .summary import summarize
from .tokenizer import read_tokenizer
from .tracer import Tracer

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
    tls: ssl.SSLContext | None


def run(settings: Settings) -> int:
    """`turbosparse serve`: blocks until the server ends; returns the exit status.

    Raises SettingsError, CheckpointError and EngineStartError before the first request.
    """
    logs.configure(settings.log_level, settings.log_format)
    logger.info("turbosparse %s, settings: %s", __version__, flags.changed(settings) or "defaults")
    prepared = Prepared(
        tls=_tls(settings),
        listening=_bind(settings.host, settings.port),
        model=locate(settings.model),
        predictors=locate_predictors(settings.predictors),
        settings=replace(settings, attention_gates=locate_gates(settings.attention_gates)),
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(serve(prepared))


async def serve(prepared: Prepared, build: str = DEFAULT_RUNNER) -> int:
    """Start the engine, answer until told to stop or until the engine dies."""
    settings = prepared.settings
    starting = asyncio.create_task(
        start_service(settings, prepared.model, prepared.predictors, build)
    )
    _on_signal(starting.cancel)
    try:
        service = await starting
    except asyncio.CancelledError:
        return 0  # told to stop while loading
    tracing = _tracing(settings)
    if tracing is not None:
        service.on_ended.append(tracing.ended)
    try:
        app = create_app(service, _edge(settings, tracing))
        server = Server(_uvicorn(settings, app), service, settings.shutdown_timeout, prepared.tls)
        url = _url(prepared)
        server.on_started = lambda: _say(banner(service.names[0], service.engine.info, url))
        _on_signal(server.stop)
        async with (
            _beside(_watch(service.engine, server, settings.step_timeout)),
            _beside(summarize(service.engine)),
        ):
            await server.serve(sockets=[prepared.listening])
        return 0 if service.engine.dead is None else 1
    finally:
        await service.engine.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


async def start_service(
    settings: Settings, model: Located, predictors: str | None, build: str = DEFAULT_RUNNER
) -> Service:
    """Read what the API process needs of the checkpoint and start the engine over it."""
    directory = model.directory
    tokenizer, template = read_tokenizer(directory), read_chat_template(directory)
    defaults = read_defaults(directory)
    engine = await EngineClient.start(settings.engine(str(directory), predictors), build)
    return Service(
        engine,
        tokenizer,
        template,
        names=settings.served_model_name or (model.name,),
        defaults=defaults,
        max_queued_requests=settings.max_queued_requests,
        request_timeout=settings.request_timeout,
    )


def _edge(settings: Settings, tracing: Tracer | None) -> Edge:
    return Edge(
        max_body_bytes=settings.max_body_bytes,
        api_keys=settings.api_key,
        cors_origins=settings.cors_origins,
        access_log=settings.access_log,
        tracing=None if tracing is None else tracing.middleware,
    )


def _uvicorn(settings: Settings, app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(settings.max_header_bytes),
        ws="none",
        log_config=None,
        access_log=False,  # ours names the request
        timeout_graceful_shutdown=GOODBYE_SECONDS,
        lifespan="off",
    )


async def _watch(engine: EngineClient, server: Server, step_timeout: float) -> None:
    """End the server once the engine is dead, and the engine once it is stuck."""
    watching = asyncio.create_task(engine.watch(step_timeout)) if step_timeout else None
    try:
        reason = await engine.wait_dead()
    finally:
        if watching is not None:
            watching.cancel()
    logger.critical("%s: the server ends", reason)
    await asyncio.sleep(DEAD_SECONDS)  # /health says 503 and open streams get their error
    server.stop()


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncGenerator[None]:
    """Runs a task for as long as the block does."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _tracing(settings: Settings) -> Tracer | None:
    """Traces where they are asked for; raises SettingsError where the packages are missing."""
    if settings.otlp_traces_endpoint is None:
        return None
    try:
        from .tracing import Tracing
    except ImportError as error:
        raise SettingsError(
            f"--otlp-traces-endpoint needs pip install 'turbosparse[otel]': {error}"
        ) from error
    return Tracing(settings.otlp_traces_endpoint)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """From the files that the flags name; raises SettingsError before the model loads."""
    if settings.ssl_certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_keyfile_password or ""
        )
        if settings.ssl_ca_certs is not None:
            context.load_verify_locations(settings.ssl_ca_certs)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"--ssl-certfile, --ssl-keyfile or --ssl-ca-certs: {error}") from error
    return context


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
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


def _url(prepared: Prepared) -> str:
    host, port = prepared.listening.getsockname()[:2]
    scheme = "http" if prepared.tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
