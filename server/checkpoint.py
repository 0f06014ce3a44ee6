"""Finds a model's files: a directory, a repository on the Hugging Face Hub, or the bundled one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

BUNDLED = Path(__file__).parent.parent / "models" / "tiny"
BUNDLED_NAME = "turbosparse-tiny"
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.md")
PREDICTORS = ("*.pt", "layer_*.safetensors", "config.json")
GATES = ("model.safetensors", "config.json")


class CheckpointError(Exception):
    """The model cannot be found, fetched or read; the message is for the operator."""


@dataclass(frozen=True, slots=True)
class Located:
    """A model on this machine, and what to call it."""

    directory: Path
    name: str


def locate(model: str | None) -> Located:
    """The bundled model for None; a directory; a repository id. Raises CheckpointError."""
    if model is None:
        return Located(BUNDLED, BUNDLED_NAME)
    return Located(_fetch(model, WEIGHTS), model.rstrip("/"))


def locate_predictors(predictors: str | None) -> str | None:
    """A directory, or a repository id, with separate predictors. Raises CheckpointError."""
    return None if predictors is None else str(_fetch(predictors, PREDICTORS))


def locate_gates(gates: str | None) -> str | None:
    """A directory, or a repository id, with attention gates. Raises CheckpointError."""
    return None if gates is None else str(_fetch(gates, GATES))


def _fetch(name: str, patterns: tuple[str, ...]) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise CheckpointError(f"{name} is a file: give the directory that holds config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"there is no directory {name}")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as error:
        raise CheckpointError(
            f"{name} is neither a directory nor a repository id such as owner/name"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is no directory here, and fetching it failed: {error}"
        ) from error


def read_json(path: Path) -> dict[str, object]:
    """A JSON object, or {} where there is no such file. Raises CheckpointError."""
    if not path.is_file():
        return {}
    try:
        value: object = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return cast("dict[str, object]", value)


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model's makers sample with, where a request does not say."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None


def read_defaults(directory: Path) -> Defaults:
    """From generation_config.json, as vLLM does.

    The published TurboSparse checkpoints say `do_sample: true, temperature: 0.0`: that is greedy.
    A file that does not switch sampling on says nothing about temperature.
    """
    said = read_json(directory / "generation_config.json")
    names = {"repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}
    if said.get("do_sample") is True:
        names |= {
            "temperature": "temperature",
            "top_p": "top_p",
            "top_k": "top_k",
            "min_p": "min_p",
        }
    numbers = {
        ours: value
        for theirs, ours in names.items()
        if isinstance(value := said.get(theirs), int | float) and not isinstance(value, bool)
    }
    return Defaults(**numbers)  # pyright: ignore[reportArgumentType]
