"""The engine's own process: reads the pipe, steps, sends one message a step.

It outlives nothing: when the parent is gone, however it went, the pipe reads EOF and this ends.
"""

from __future__ import annotations

import faulthandler
import logging
import signal
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

from . import logs
from .config import EngineConfig
from .core import EngineCore, Runner
from .grammar import Grammars
from .messages import Abort, EngineInfo, ResetPrefixCache, StartFailed, Submit, ToEngine
from .pages import PagePool
from .scheduler import Scheduler

logger = logging.getLogger(__name__)
Build = Callable[[EngineConfig], tuple[Runner[object], EngineInfo]]
STACKS = signal.SIGUSR1  # makes the engine print the stacks of all its threads
DEFAULT_RUNNER = "turbosparse.engine.runner:build_runner"
TOKENIZER = "tokenizer.json"  # for grammars alone: nothing else in the engine knows text
COMPILE_SECONDS = 0.002  # how often to look whether a grammar is ready, when there is nothing to do


def run_engine(connection: Connection, config: EngineConfig, build: str = DEFAULT_RUNNER) -> None:
    """The child's main: start, say what started, then serve until the pipe closes.

    `build` names the function that makes the runner, as `module:function`: it is imported here, so
    that nobody but this process pays for torch.
    """
    # The parent decides when to stop; a Ctrl-C or a signal to the whole group must not race it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(STACKS)  # where a stuck step is, before the parent kills us
    logs.configure(config.log_level, config.log_format)
    try:
        core, info = _start(config, build)
    except Exception as error:
        logger.debug("the engine did not start", exc_info=True)
        connection.send(StartFailed(_explain(error)))
        return
    try:
        connection.send(info)
        _serve(connection, core)
    except (EOFError, ConnectionError):
        return  # the parent is gone


def _start(config: EngineConfig, build: str) -> tuple[EngineCore[object], EngineInfo]:
    module, _, function = build.partition(":")
    make: Build = getattr(import_module(module), function)
    runner, info = make(config)
    scheduler = Scheduler(
        PagePool(info.num_pages, info.page_size, config.prefix_caching),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=info.max_model_len,
    )
    overlap = info.device != "cpu" if config.overlap is None else config.overlap
    grammars = Grammars(Path(config.model, TOKENIZER), info.vocab_size, info.eos_token_ids)
    core = EngineCore(
        runner,
        scheduler,
        info.eos_token_ids,
        overlap=overlap,
        grammars=grammars,
        seed=config.seed,
    )
    return core, info


def _explain(error: Exception) -> str:
    """A message for the operator: our own errors speak for themselves, others need their name."""
    ours = type(error).__module__.startswith(__name__.partition(".")[0])
    return str(error) if ours else f"{type(error).__name__}: {error}"


def _serve(connection: Connection, core: EngineCore[object]) -> None:
    while True:
        _receive(connection, core)
        core.add_compiled()
        if core.has_work:
            connection.send(core.step())


def _receive(connection: Connection, core: EngineCore[object]) -> None:
    """Take all that has arrived; wait only when there is nothing to do."""
    while connection.poll(_patience(core)):
        message: ToEngine = connection.recv()
        match message:
            case Submit():
                core.add(message)
            case Abort():
                core.abort(message.ids)
            case ResetPrefixCache():
                core.reset_prefix_cache()


def _patience(core: EngineCore[object]) -> float | None:
    """Seconds to wait for a message; None: there is nothing else to do."""
    if core.has_work:
        return 0
    return COMPILE_SECONDS if core.is_compiling else None
