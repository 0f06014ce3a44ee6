"""`turbosparse chat`: talk to a server in a terminal, or ask it one question."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import dataclass
from importlib import import_module

from .. import flags
from ..flags import flag
from .client import Answer, Client, Connection, connected, say

HELP = "Ctrl-C stops an answer, an empty line starts a new conversation, Ctrl-D ends."


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFlags(Connection):
    """What `chat` can be told."""

    quick: str | None = flag(None, "ask this, print the answer, and end")
    system: str | None = flag(None, "what the assistant is told first")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    flags.add_arguments(parser, ChatFlags)


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status; raises SettingsError, ClientError."""
    chosen = flags.read(ChatFlags, vars(arguments))
    with connected(chosen) as client:
        conversation = Conversation(client, chosen)
        if chosen.quick is not None:
            conversation.ask(chosen.quick)
        else:
            _talk(conversation, client.model())
    return 0


class Conversation:
    """The turns so far."""

    def __init__(self, client: Client, chosen: ChatFlags) -> None:
        self._client, self._chosen = client, chosen
        self.restart()

    def restart(self) -> None:
        system = self._chosen.system
        self._messages = [{"role": "system", "content": system}] if system else []

    def ask(self, text: str) -> None:
        """One turn, printed as it comes."""
        self._messages.append({"role": "user", "content": text})
        body = {"messages": self._messages, **self._chosen.sampling()}
        answer = Answer()
        say(self._client.stream("/v1/chat/completions", body, answer))
        self._messages.append({"role": "assistant", "content": answer.text})
        if self._chosen.stats:
            sys.stderr.write(answer.stats() + "\n")


def _talk(conversation: Conversation, model: str) -> None:
    with contextlib.suppress(ImportError):
        import_module("readline")  # input() then has a history

    print(f"{model}. {HELP}")
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text:
            conversation.ask(text)
        else:
            conversation.restart()
            print("(a new conversation)")
