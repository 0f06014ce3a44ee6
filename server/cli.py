"""The command `turbosparse`. Knows which command needs what, and imports only that."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from .. import __version__
from ..engine.errors import EngineStartError
from . import settings
from .checkpoint import CheckpointError
from .settings import Settings, SettingsError

TOOLS = {
    "make-model": ("synthetic", "write a random checkpoint, for measuring speed"),
    "train": ("train", "train the bundled model"),
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
    serve.add_argument(
        "model",
        nargs="?",
        help="a directory, or owner/name on the Hugging Face Hub; default: the bundled model",
    )
    settings.add_arguments(serve)
    given = list(sys.argv[1:] if argv is None else argv)
    for name, (module, help) in TOOLS.items():
        tool = commands.add_parser(name, help=help)
        if given[:1] == [name]:  # only the one that runs pays for its imports
            import_module(f"{PACKAGE}.models.tools.{module}").add_arguments(tool)
    arguments = parser.parse_args(given)
    try:
        if arguments.command == "serve":
            return _serve(vars(arguments))
        return _run_tool(TOOLS[arguments.command][0], arguments)
    except (SettingsError, CheckpointError, EngineStartError) as error:
        print(f"turbosparse: error: {error}", file=sys.stderr)
        return 1


def _serve(arguments: dict[str, object]) -> int:
    chosen = settings.read(arguments)
    from .serve import run

    with _model(arguments["model"], chosen) as (model, chosen):
        return run(model, chosen)


@contextmanager
def _model(model: object, chosen: Settings) -> Generator[tuple[str | None, Settings]]:
    """The model as it was given, or a directory that describes the synthetic one."""
    given = model if isinstance(model, str) else None
    name, layers, density = chosen.synthetic, chosen.synthetic_layers, chosen.synthetic_density
    if name is None:
        if layers is not None or density is not None:
            flag = "density" if layers is None else "layers"
            raise SettingsError(f"--synthetic-{flag} needs --synthetic")
        yield given, chosen
        return
    if given is not None:
        raise SettingsError(f"--synthetic={name} stands instead of a MODEL, but {given} was given")
    from ..models.config import ModelError
    from ..models.tools import shapes

    with tempfile.TemporaryDirectory(prefix="turbosparse-") as folder:
        try:
            shapes.describe_named(Path(folder), name, layers=layers, density=density)
        except ModelError as error:
            raise SettingsError(f"--synthetic: {error}") from error
        yield folder, replace(chosen, served_model_name=chosen.served_model_name or name)


def _run_tool(module: str, arguments: argparse.Namespace) -> int:
    from ..models.config import ModelError

    try:
        import_module(f"{PACKAGE}.models.tools.{module}").run(arguments)
    except ModelError as error:
        print(f"turbosparse: error: {error}", file=sys.stderr)
        return 1
    return 0
