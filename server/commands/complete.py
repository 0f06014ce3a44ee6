"""`turbosparse complete`: what follows a text, from a server, in a terminal or a pipe."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from .. import flags
from ..flags import flag
from .client import Answer, Connection, connected, say


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteFlags(Connection):
    """What `complete` can be told."""

    prompt: str | None = flag(None, "the text; default: what comes on stdin", positional=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_arguments(parser, CompleteFlags)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises SettingsError, ClientError."""
    chosen = flags.read(CompleteFlags, vars(arguments))
    prompt = sys.stdin.read() if chosen.prompt is None else chosen.prompt
    answer = Answer()
    with connected(chosen) as client:
        say(client.stream("/v1/completions", {"prompt": prompt, **chosen.sampling()}, answer))
    if chosen.stats:
        sys.stderr.write(answer.stats() + "\n")
    return 0
