"""What `chat` and `complete` share: a server somewhere, and an answer that comes in pieces."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..flags import flag

CONNECT_SECONDS = 10.0
OK = 200


class ClientError(Exception):
    """The server could not be reached, or refused; the message is for whoever typed the command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where the server is, and how to ask it."""

    url: str = flag("http://127.0.0.1:8000", "the server")
    api_key: tuple[str, ...] = flag((), "the server's key; of several, the first", secret=True)
    max_tokens: int | None = flag(None, "tokens of an answer, at most", low=1)
    temperature: float | None = flag(None, "0 always takes the most likely token", low=0)
    seed: int | None = flag(None, "the same seed, the same answer")
    stats: bool = flag(False, "say after each answer how fast it came")

    def sampling(self) -> dict[str, object]:
        """The fields of a request that were asked for."""
        wanted = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        return {name: value for name, value in wanted.items() if value is not None}


@dataclass(slots=True)
class Answer:
    """An answer so far. Times are in seconds from the request."""

    started: float = field(default_factory=time.perf_counter)
    first: float | None = None
    last: float = 0.0
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, text: str) -> None:
        self.last = time.perf_counter() - self.started
        if self.first is None:
            self.first = self.last
        self.text += text

    def stats(self) -> str:
        """One line about how fast it came."""
        num_tokens = int(self.usage.get("completion_tokens", 0))
        first = self.last if self.first is None else self.first
        line = f"{num_tokens} tokens, first after {first * 1e3:.0f} ms"
        if num_tokens > 1 and self.last > first:
            line += f", then {(num_tokens - 1) / (self.last - first):.1f} tokens/s"
        return line


class Client:
    """Streams from one server. Knows both shapes of OpenAI's chunks."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._model: str | None = None

    def model(self) -> str:
        """The first model that the server names."""
        if self._model is None:
            self._model = str(self._get("/v1/models")["data"][0]["id"])
        return self._model

    def stream(self, path: str, body: dict[str, object], answer: Answer) -> Iterator[str]:
        """Pieces of text as they come; what they were is left in `answer`."""
        body = {"model": self.model(), **body}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        with _explained(), self._http.stream("POST", path, json=body) as response:
            if response.status_code != OK:
                response.read()
                raise ClientError(_message(response))
            for line in response.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    text = _text(json.loads(line.removeprefix("data: ")), answer)
                    if text:
                        answer.add(text)
                        yield text

    def _get(self, path: str) -> Any:
        with _explained():
            response = self._http.get(path)
        if response.status_code != OK:
            raise ClientError(_message(response))
        return response.json()


def _text(chunk: dict[str, Any], answer: Answer) -> str:
    if "error" in chunk:
        raise ClientError(str(chunk["error"]["message"]))
    answer.usage = chunk.get("usage") or answer.usage
    if not chunk["choices"]:
        return ""
    choice = chunk["choices"][0]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


def _message(response: httpx.Response) -> str:
    try:
        return f"{response.status_code}: {response.json()['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code}: {response.text[:200]}"


@contextmanager
def _explained() -> Generator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise ClientError(f"no answer from the server: {error}") from error


@contextmanager
def connected(connection: Connection) -> Generator[Client]:
    """A client of the server that the flags name."""
    headers = {"Authorization": f"Bearer {connection.api_key[0]}"} if connection.api_key else {}
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    with httpx.Client(base_url=connection.url, headers=headers, timeout=timeout) as http:
        yield Client(http)


def say(pieces: Iterator[str]) -> None:
    """Write pieces as they come; Ctrl-C ends the answer, not the command."""
    # closing the generator closes the stream, which ends the request
    with suppress(KeyboardInterrupt):
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
