"""How a measurement can be made again: on what, and by which command."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from turbosparse.models.machine import commit, software


def facts(device: str, commit_id: str | None) -> dict[str, str]:
    """Where and how this was run, for whoever runs it again."""
    return {
        "machine": device,
        "software": software("torch", "triton", "transformers"),
        "commit": commit_id or commit(),
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }
