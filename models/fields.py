"""Typed reading of JSON: what is missing or ill-typed is named. Knows no tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from .config import ModelError

Json = Mapping[str, object]


def is_object(value: object) -> TypeGuard[Json]:
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list)


def as_object(value: object, where: str) -> Json:
    """`value`, or ModelError that begins with `where`."""
    if not is_object(value):
        raise ModelError(f"{where}: expected an object, got {value!r}")
    return value


def as_list(value: object, where: str) -> Sequence[object]:
    """`value`, or ModelError that begins with `where`."""
    if not is_list(value):
        raise ModelError(f"{where}: expected a list, got {value!r}")
    return value


def read_object(path: Path, *, optional: bool = False) -> Json:
    """The object in a JSON file, empty when an optional one is absent; raises ModelError."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise ModelError(f"{path} is missing") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ModelError(f"{path} is not JSON: {error}") from error
    return as_object(value, str(path))


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed reading of an object's fields; `source` names the file in messages."""

    json: Json
    source: str = "config.json"

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; null counts as absent."""
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"{self.source}: {name} must be a positive integer, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        """An int or float; null counts as absent."""
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelError(f"{self.source}: {name} must be a number, got {value!r}")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """A string; null counts as absent."""
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise ModelError(f"{self.source}: {name} must be a string, got {value!r}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false; null counts as absent."""
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ModelError(f"{self.source}: {name} must be true or false, got {value!r}")
        return value

    def refuse(self, name: str, *neutral: object) -> None:
        """Raise unless the field is absent, null or neutral: it would change the function."""
        value = self.json.get(name)
        if value is not None and value not in neutral:
            raise ModelError(f"{self.source}: {name}={value!r} is not supported")
