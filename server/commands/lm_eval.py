"""Tasks of lm-evaluation-harness, through its client of a completions API, against a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ..flags import SettingsError

CONCURRENCY = 8
Scores = dict[str, dict[str, float]]  # task -> metric -> value


def find_lm_eval() -> str:
    """The program; raises SettingsError with how to install it."""
    beside = Path(sys.executable).with_name("lm_eval")
    found = str(beside) if beside.is_file() else shutil.which("lm_eval")
    if found is None:
        raise SettingsError(
            "--lm-eval needs lm-evaluation-harness, in this environment or in one of its own on "
            "the PATH: pip install 'lm-eval[api]' transformers"
        )
    return found


def run_tasks(
    url: str,
    key: str,
    model: str,
    tokenizer: Path,
    max_length: int,
    tasks: Sequence[str],
    include_path: str | None,
) -> Scores:
    """Every metric of every task; raises SettingsError where the harness fails."""
    settings = {
        "model": model,
        "base_url": f"{url}/v1/completions",
        "tokenizer": str(tokenizer.resolve()),
        "max_length": max_length,
        "num_concurrent": CONCURRENCY,
    }
    with tempfile.TemporaryDirectory(prefix="turbosparse-") as folder:
        command = [
            find_lm_eval(),
            *("--model", "local-completions", "--tasks", ",".join(tasks)),
            *("--model_args", ",".join(f"{name}={value}" for name, value in settings.items())),
            *("--output_path", folder),
        ]
        if include_path is not None:
            command += ["--include_path", include_path]
        environment = os.environ | {"OPENAI_API_KEY": key or "none"}
        status = subprocess.run(command, stdout=sys.stderr, env=environment, check=False).returncode
        found = sorted(Path(folder).rglob("results*.json"))
        if status or not found:
            raise SettingsError(
                f"--lm-eval={','.join(tasks)}: lm_eval ended with status {status}; "
                "what it said stands above"
            )
        return read_results(json.loads(found[-1].read_text("utf-8")))


def read_results(results: dict[str, Any]) -> Scores:
    """The numbers of a results file: `acc,none` is `acc`; other filters keep their name."""
    tasks = cast("dict[str, dict[str, object]]", results["results"])
    return {
        task: {
            name.removesuffix(",none"): float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and "," in name
        }
        for task, metrics in tasks.items()
    }
