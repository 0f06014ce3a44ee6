"""What a measurement was made on, and how to make it again. Imports no torch."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path


def facts(device: str, commit_id: str | None) -> dict[str, str]:
    """Where and how this was run, for whoever runs it again."""
    packages = {name: _version(name) for name in ("torch", "triton", "transformers")}
    return {
        "machine": device,
        "software": ", ".join(f"{name} {version}" for name, version in packages.items()),
        "commit": commit_id or commit(),
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor() -> str:
    """What /proc calls it; platform.processor() is empty on most Linux systems."""
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def commit() -> str:
    """The commit that was measured, and whether files differ from it."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=10",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
