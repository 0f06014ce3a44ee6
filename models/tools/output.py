"""Where tools write: a folder that is filled beside its place and put there whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..config import ModelError


def check_destination(out: Path, *, empty: bool = False) -> None:
    """Raise ModelError unless `out` is new or a folder, and can be written beside."""
    if out.exists() and not out.is_dir():
        raise ModelError(f"--out: {out} is not a folder")
    if empty and out.exists() and any(out.iterdir()):
        raise ModelError(f"--out: {out} is not empty")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"--out: {out.parent} cannot be made: {error}") from error


@contextmanager
def filled(out: Path) -> Generator[Path]:
    """A folder beside `out` to fill; afterwards its files are moved into `out`, each whole.

    Other files of `out` are left alone. After a failure `out` is as it was, and a full disk is a
    ModelError.
    """
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        yield beside
        out.mkdir(exist_ok=True)
        for file in beside.iterdir():
            os.replace(file, out / file.name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"--out: {out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)
