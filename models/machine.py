"""What a measurement was made on. Imports no torch."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent


def processor() -> str:
    """What /proc calls it; platform.processor() is empty on most Linux systems."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def software(*packages: str) -> str:
    """These packages, with their versions."""
    return ", ".join(f"{name} {_version(name)}" for name in packages)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit of this checkout, and whether files differ from it; an installed package, even one
    inside somebody's repository, has none."""
    if _git("rev-parse", "--show-toplevel") != str(ROOT.resolve()):
        return "unknown"
    return _git("describe", "--always", "--dirty", "--abbrev=10") or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
