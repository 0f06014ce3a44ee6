"""The command `turbosparse`. Knows which command needs what, and imports only that."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..engine.errors import EngineStartError
from . import settings
from .checkpoint import CheckpointError
from .settings import SettingsError

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

    model = arguments["model"]
    return run(model if isinstance(model, str) else None, chosen)


def _run_tool(module: str, arguments: argparse.Namespace) -> int:
    from ..models.config import ModelError

    try:
        import_module(f"{PACKAGE}.models.tools.{module}").run(arguments)
    except ModelError as error:
        print(f"turbosparse: error: {error}", file=sys.stderr)
        return 1
    return 0
