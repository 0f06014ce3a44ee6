"""The command `turbosparse`. Knows which command needs what, and imports only that."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .. import __version__
from ..engine.errors import EngineStartError
from . import flags
from .checkpoint import CheckpointError, locate, locate_gates, locate_predictors
from .flags import SettingsError
from .settings import FFN_MODES, Settings

COMMANDS = {
    "chat": ("chat", "talk to a server"),
    "complete": ("complete", "what follows a text, from a server"),
    "bench": ("bench", "measure a server under load, over HTTP"),
    "evaluate": ("evaluate", "measure what a model computes, on text and on tasks"),
    "run-batch": ("run_batch", "answer a file of requests, without a server"),
    "collect-env": ("collect_env", "describe this machine, for a bug report"),
}
TOOLS = {
    "make-model": ("synthetic", "write a random checkpoint, for measuring speed"),
    "train": ("train", "train the bundled model"),
    "train-gates": ("train_gates", "train gates that choose which K/V pages a token reads"),
    "train-predictor": ("train_predictor", "make separate predictors for a ReLU model"),
    "sparsify": ("sparsify", "make a dense model activation-sparse, by continued pretraining"),
}
PACKAGE = __name__.removesuffix(".server.cli")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script's entry: returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="turbosparse", description="Serve activation-sparse language models."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve a model over HTTP, as OpenAI's API")
    flags.add_arguments(serve, Settings)
    calibrate = commands.add_parser(
        "calibrate", help="measure a model's FFN modes anew; serve takes what this finds"
    )
    flags.add_arguments(calibrate, Settings)
    given = list(sys.argv[1:] if argv is None else argv)
    modules = _modules()
    for name, (module, help) in modules.items():
        command = commands.add_parser(name, help=help)
        if given[:1] == [name]:  # only the one that runs pays for its imports
            import_module(module).add_arguments(command)
    arguments = parser.parse_args(given)
    try:
        if arguments.command == "serve":
            return _serve(flags.read(Settings, vars(arguments)))
        if arguments.command == "calibrate":
            return _calibrate(flags.read(Settings, vars(arguments)))
        return _run(import_module(modules[arguments.command][0]), arguments)
    except (SettingsError, CheckpointError, EngineStartError) as error:
        return _fail(error)
    except BrokenPipeError:  # who read what we print has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _modules() -> dict[str, tuple[str, str]]:
    """Name of a command -> the module that runs it, and its help."""
    places = {"server.commands": COMMANDS, "models.tools": TOOLS}
    return {
        name: (f"{PACKAGE}.{place}.{module}", help)
        for place, found in places.items()
        for name, (module, help) in found.items()
    }


def _serve(settings: Settings) -> int:
    from .serve import run

    with _described(settings) as settings:
        return run(settings)


def _calibrate(settings: Settings) -> int:
    """Start an engine as serve would, with next to no K/V pages, and print what it measured."""
    from ..engine.runner import build_runner

    with _described(settings) as settings, _refusals():
        predictors = locate_predictors(settings.predictors)
        settings = replace(settings, attention_gates=locate_gates(settings.attention_gates))
        config = settings.engine(str(locate(settings.model).directory), predictors)
        _, info = build_runner(replace(config, recalibrate=True, num_pages=1))
    print(f"{info.device}, {info.dtype}; microseconds of one layer's FFN")
    print(f"{'tokens':>8}" + "".join(f"{mode:>10}" for mode in FFN_MODES) + f"{'chosen':>10}")
    for row in info.ffn_timings:
        times = "".join(f"{row.microseconds[mode]:>10.1f}" for mode in FFN_MODES)
        print(f"{row.num_tokens:>8}{times}{row.chosen:>10}")
    if not info.ffn_timings:
        print("nothing to choose: " + ", ".join(set(info.ffn_modes.values())))
    return 0


@contextmanager
def _refusals() -> Generator[None]:
    """A model that cannot be run is an error for the operator, as it is when the engine starts."""
    from ..models.config import ModelError

    try:
        yield
    except ModelError as error:
        raise EngineStartError(str(error)) from error


@contextmanager
def _described(settings: Settings) -> Generator[Settings]:
    """The settings as they were given, or with a directory that describes the synthetic model."""
    name, layers, density = (
        settings.synthetic,
        settings.synthetic_layers,
        settings.synthetic_density,
    )
    if name is None:
        if layers is not None or density is not None:
            flag = "density" if layers is None else "layers"
            raise SettingsError(f"--synthetic-{flag} needs --synthetic")
        yield settings
        return
    if settings.model is not None:
        raise SettingsError(
            f"--synthetic={name} stands instead of a MODEL, but {settings.model} was given"
        )
    from ..models.tools import shapes

    with tempfile.TemporaryDirectory(prefix="turbosparse-") as folder:
        with _refusals():
            shapes.describe_named(Path(folder), name, layers=layers, density=density)
        names = settings.served_model_name or (name,)
        yield replace(settings, model=folder, served_model_name=names)


def _run(module: ModuleType, arguments: argparse.Namespace) -> int:
    from .commands.client import ClientError

    try:
        with _refusals():
            return module.run(arguments) or 0
    except ClientError as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    print(f"turbosparse: error: {error}", file=sys.stderr)
    return 1
