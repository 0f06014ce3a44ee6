"""A command's flags from a dataclass: each is also an environment variable and a key in a file.

A flag wins over the environment, the environment over the file. The only place that reads either.
"""

from __future__ import annotations

import argparse
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

import yaml

PREFIX = "TURBOSPARSE_"
CONFIG = "config"


class SettingsError(Exception):
    """A flag, variable or key has a value that cannot be used; the message names it."""


class Flags(Protocol):
    """Any dataclass whose fields are made by `flag`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


F = TypeVar("F", bound=Flags)


@dataclass(frozen=True, slots=True)
class Given:
    """A value as somebody gave it, and where."""

    source: str
    value: object


def flag(
    default: object,
    help: str,
    *,
    choices: tuple[str, ...] | tuple[int, ...] = (),
    low: float | None = None,
    positional: bool = False,
    secret: bool = False,
    short: str | None = None,
) -> Any:
    """A setting with its help text, and optionally its choices, lowest value or short flag.

    A tuple takes several values, separated by commas or by repeating the flag. A secret is never
    printed.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "low": low,
        "positional": positional,
        "secret": secret,
        "short": short,
    }
    return field(default=default, metadata=metadata)


def add_arguments(parser: argparse.ArgumentParser, kind: type[Flags]) -> None:
    """One flag per setting. Unset flags stay absent, so that the environment can speak."""
    parser.add_argument(
        f"--{CONFIG}",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help=f"a YAML file of these settings by name [{PREFIX}{CONFIG.upper()}]",
    )
    hints = typing.get_type_hints(kind)
    for setting in fields(kind):
        _add_argument(parser, setting, hints[setting.name])


def _add_argument(parser: argparse.ArgumentParser, setting: Field[Any], hint: object) -> None:
    assert setting.default is not MISSING, setting.name
    help = f"{setting.metadata['help']} [{_variable(setting.name)}]"
    if setting.default not in (None, False, (), ""):
        shown = setting.default
        if isinstance(shown, tuple):
            shown = ",".join(map(str, cast("tuple[object, ...]", shown)))
        help += f" (default: {shown})"
    if setting.metadata["positional"]:
        parser.add_argument(setting.name, nargs="?", default=argparse.SUPPRESS, help=help)
    elif hint is bool:
        parser.add_argument(
            _flag(setting.name), action="store_true", default=argparse.SUPPRESS, help=help
        )
    else:
        short = setting.metadata["short"]
        parser.add_argument(
            *([short] if short else []),
            _flag(setting.name),
            action="append" if _is_tuple(hint) else "store",
            default=argparse.SUPPRESS,
            help=help,
            metavar="|".join(map(str, setting.metadata["choices"]))
            or setting.name.split("_")[-1].upper(),
        )


def read(
    kind: type[F], arguments: Mapping[str, object], environment: Mapping[str, str] = os.environ
) -> F:
    """Flags first, then the environment, then the file, then the defaults; raises SettingsError."""
    file = _file(kind, arguments, environment)
    hints = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    for setting in fields(kind):
        given = _given(setting, arguments, environment, file)
        if given is not None:
            value = _convert(given, hints[setting.name])
            for one in cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,):
                _check(given.source, one, setting.metadata["choices"], setting.metadata["low"])
            values[setting.name] = value
    return kind(**values)


def changed(settings: Flags) -> dict[str, object]:
    """What differs from the defaults, for a log: secrets only say that they are there."""
    found: dict[str, object] = {}
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        if value != setting.default:
            found[setting.name] = "***" if setting.metadata["secret"] else value
    return found


def _given(
    setting: Field[Any],
    arguments: Mapping[str, object],
    environment: Mapping[str, str],
    file: Mapping[str, Given],
) -> Given | None:
    if setting.name in arguments:
        source = setting.name if setting.metadata["positional"] else _flag(setting.name)
        return Given(source, arguments[setting.name])
    if environment.get(_variable(setting.name)):
        return Given(_variable(setting.name), environment[_variable(setting.name)])
    return file.get(setting.name)


def _file(
    kind: type[Flags], arguments: Mapping[str, object], environment: Mapping[str, str]
) -> dict[str, Given]:
    """The settings in the file that was named, by field name."""
    named = arguments.get(CONFIG) or environment.get(_variable(CONFIG))
    if not named:
        return {}
    try:
        read: object = yaml.safe_load(Path(str(named)).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"--{CONFIG}: cannot read {named}: {error}") from error
    if not isinstance(read, dict | None):
        raise SettingsError(f"--{CONFIG}: {named} is not a list of `setting: value` lines")
    known = {setting.name for setting in fields(kind)}
    found: dict[str, Given] = {}
    for key, value in cast("dict[object, object]", read or {}).items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise SettingsError(f"{named}: there is no setting {key}")
        if value is not None:
            found[name] = Given(f"{named}: {key}", value)
    return found


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _is_tuple(hint: object) -> bool:
    return typing.get_origin(hint) is tuple


def _convert(given: Given, hint: object) -> object:
    if _is_tuple(hint):
        value = given.value
        parts = cast("list[object]", value) if isinstance(value, list) else [value]
        texts = [t.strip() for part in parts for t in str(part).split(",") if t.strip()]
        element = typing.get_args(hint)[0]
        return tuple(_convert(Given(given.source, text), element) for text in texts)
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if isinstance(given.value, list | dict):
        raise SettingsError(f"{given.source} takes one value, not {given.value!r}")
    text = str(given.value)
    if hint is bool:
        if text.lower() not in ("1", "0", "true", "false"):
            raise SettingsError(f"{given.source}={text!r} is neither true nor false")
        return text.lower() in ("1", "true")
    if hint is int or hint is float:
        try:
            return hint(text)
        except ValueError:
            raise SettingsError(f"{given.source}={text!r} is not a number") from None
    return text


def _check(source: str, value: Any, choices: tuple[object, ...], low: float | None) -> None:
    if choices and value not in choices:
        raise SettingsError(f"{source}={value!r} is not one of {', '.join(map(str, choices))}")
    if low is not None and value < low:
        raise SettingsError(f"{source}={value} is less than {low:g}")
