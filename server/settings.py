"""Every flag of `turbosparse serve`, once: its default, its help, its environment variable.

The only place that reads the environment.
"""

from __future__ import annotations

import argparse
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields

from ..engine.config import EngineConfig

PREFIX = "TURBOSPARSE_"
GIB = 1 << 30
FFN_MODES = ("token", "union", "dense")


class SettingsError(Exception):
    """A flag or environment variable has a value that cannot be used; the message names it."""


def flag(
    default: object, help: str, *, choices: tuple[str, ...] = (), low: float | None = None
) -> typing.Any:
    """A setting with its help text, and optionally its choices or lowest value."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve which model. Sizes are in tokens, times in seconds, unless named otherwise."""

    host: str = flag("127.0.0.1", "address to listen on")
    port: int = flag(8000, "port to listen on; 0 takes a free one", low=0)
    served_model_name: str | None = flag(
        None, "name of the model for clients; several, separated by commas, all mean it"
    )
    synthetic: str | None = flag(
        None,
        "instead of MODEL: a random model of a published shape, such as turbosparse-mistral-7b",
    )
    synthetic_layers: int | None = flag(None, "layers of the --synthetic model", low=1)
    synthetic_density: float | None = flag(
        None, "share of the neurons that the --synthetic model's predictors keep, 0 to 1"
    )
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, float32, bfloat16 or float16")
    predictors: str | None = flag(
        None, "folder or repository of model_{i}.pt predictors: makes a ReLU model approximate"
    )
    ffn_mode: str | None = flag(
        None,
        "run every step in one FFN mode, instead of the fastest measured",
        choices=FFN_MODES,
    )
    threads: int | None = flag(None, "CPU threads of the engine; default: all cores", low=1)
    max_model_len: int | None = flag(None, "context length; default: the model's", low=2)
    max_num_seqs: int = flag(64, "requests that run at once", low=1)
    max_num_batched_tokens: int = flag(512, "tokens that one step may compute", low=1)
    num_pages: int | None = flag(None, "pages of the K/V cache; default: what memory allows", low=1)
    kv_cache_gib: float | None = flag(None, "memory of the K/V cache in GiB", low=0)
    no_prefix_caching: bool = flag(False, "compute every prompt anew")
    max_queued_requests: int = flag(
        512, "requests that may wait beyond those that run; the next one gets 503", low=0
    )
    max_body_bytes: int = flag(4 << 20, "largest request body", low=1)
    shutdown_timeout: int = flag(30, "how long open answers may go on after SIGTERM", low=0)
    log_level: str = flag("info", "how much to log", choices=("debug", "info", "warning", "error"))
    access_log: bool = flag(False, "log every HTTP request")

    def engine(self, model: str, predictors: str | None) -> EngineConfig:
        """The engine's share of the settings, for a model that is on this machine."""
        return EngineConfig(
            model=model,
            device=self.device,
            dtype=self.dtype,
            predictors=predictors,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            num_pages=self.num_pages,
            kv_cache_bytes=None if self.kv_cache_gib is None else int(self.kv_cache_gib * GIB),
            prefix_caching=not self.no_prefix_caching,
            ffn_mode=self.ffn_mode,
            num_threads=self.threads,
        )


HINTS = typing.get_type_hints(Settings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per setting. Unset flags stay absent, so that the environment can speak."""
    for setting in fields(Settings):
        name = f"--{setting.name.replace('_', '-')}"
        help = f"{setting.metadata['help']} [{PREFIX}{setting.name.upper()}]"
        assert setting.default is not MISSING
        if setting.default is not None and setting.default is not False:
            help += f" (default: {setting.default})"
        if HINTS[setting.name] is bool:
            parser.add_argument(name, action="store_true", default=argparse.SUPPRESS, help=help)
        else:
            metavar = (
                "|".join(setting.metadata["choices"]) or setting.name.rpartition("_")[2].upper()
            )
            parser.add_argument(name, default=argparse.SUPPRESS, help=help, metavar=metavar)


def read(arguments: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> Settings:
    """Flags first, then the environment, then the defaults; raises SettingsError."""
    values: dict[str, typing.Any] = {}
    for setting in fields(Settings):
        variable = PREFIX + setting.name.upper()
        if setting.name in arguments:
            source, given = f"--{setting.name.replace('_', '-')}", arguments[setting.name]
        elif environment.get(variable):
            source, given = variable, environment[variable]
        else:
            continue
        value = _convert(source, given, HINTS[setting.name])
        _check(source, value, setting.metadata["choices"], setting.metadata["low"])
        values[setting.name] = value
    return Settings(**values)


def _convert(source: str, given: object, hint: object) -> object:
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    text = str(given)
    if hint is bool:
        if text.lower() not in ("1", "0", "true", "false"):
            raise SettingsError(f"{source}={text!r} is neither true nor false")
        return text.lower() in ("1", "true")
    if hint is int or hint is float:
        try:
            return hint(text)
        except ValueError:
            raise SettingsError(f"{source}={text!r} is not a number") from None
    return text


def _check(source: str, value: typing.Any, choices: tuple[str, ...], low: float | None) -> None:
    if choices and value not in choices:
        raise SettingsError(f"{source}={value!r} is not one of {', '.join(choices)}")
    if low is not None and value < low:
        raise SettingsError(f"{source}={value} is less than {low:g}")
