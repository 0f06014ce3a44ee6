"""`turbosparse collect-env`: what a bug report needs to say about the machine."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys

import psutil
import torch

from ... import __version__
from ...models.machine import processor
from ..flags import PREFIX

PACKAGES = (
    *("torch", "triton", "numba", "numpy", "safetensors", "tokenizers", "huggingface_hub"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "sse-starlette"),
    "prometheus-client",
)
SECRET = ("KEY", "TOKEN", "PASSWORD")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(arguments: argparse.Namespace) -> int:
    """Print it; returns 0."""
    facts = {**_machine(), **_gpus(), **_packages(), **_variables()}
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:>{width}}  {value}")
    return 0


def _machine() -> dict[str, str]:
    memory = psutil.virtual_memory()
    return {
        "turbosparse": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "libc": " ".join(platform.libc_ver()),
        "processor": processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available",
        "vector units": torch.backends.cpu.get_cpu_capability(),
    }


def _gpus() -> dict[str, str]:
    facts = {"cuda": f"torch was built for {torch.version.cuda or 'none'}"}
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            _, memory = torch.cuda.mem_get_info(i)
            major, minor = torch.cuda.get_device_capability(i)
            name = torch.cuda.get_device_name(i)
            facts[f"gpu {i}"] = f"{name}, {memory / 2**30:.1f} GiB, compute {major}.{minor}"
    else:
        facts["gpu"] = "none that torch can use"
    if shutil.which("nvidia-smi"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
        facts["driver"] = said.stdout.strip().partition("\n")[0] or said.stderr.strip()
    return facts


def _packages() -> dict[str, str]:
    facts: dict[str, str] = {}
    for name in PACKAGES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    return facts


def _variables() -> dict[str, str]:
    """Our own and those that change what torch and the Hub do; secrets only say that they are."""
    prefixes = (PREFIX, "CUDA_", "TORCH_", "TRITON_", "NUMBA_", "OMP_", "HF_")
    return {
        name: "***" if any(part in name for part in SECRET) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
    }
