"""What was measured at an earlier start, on disk: taken again where nothing has changed since.

A file that cannot be read is measured anew; a place that cannot be written is done without.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from importlib import metadata
from pathlib import Path

import torch

from .batch import FfnMode
from .config import ModelError
from .decoder import Decoder
from .fields import as_object, read_object
from .kernels import ops

logger = logging.getLogger(__name__)
FOLDER = Path.home() / ".cache" / "turbosparse" / "calibration"
PACKAGES = ("torch", "triton", "numba")
Seconds = dict[int, dict[FfnMode, float]]  # of a step of so many tokens, in each mode
Key = dict[str, object]


def key(decoder: Decoder, sizes: Sequence[int], active: float, graphs: bool) -> Key:
    """All that the times depend on; the mean active fraction to a hundredth."""
    firsts = [p for n, p in decoder.named_parameters() if n.endswith("predictor.fc1.weight")]
    return {
        "device": _device_name(decoder.embedding.device),
        "threads": ops.get_num_threads(decoder.ops),
        "dtype": str(decoder.embedding.dtype),
        "model": {name: str(value) for name, value in asdict(decoder.config).items()},
        "ranks": [len(weight) for weight in firsts],
        "predictor_dtypes": sorted({str(weight.dtype) for weight in firsts}),
        "active": round(active, 2),
        "kernels": decoder.ops.chosen(),
        "modes": " ".join(decoder.ops.modes),
        "sources": _sources(),
        "packages": {name: _version(name) for name in PACKAGES},
        "graphs": graphs,
        "sizes": " ".join(map(str, sizes)),
    }


def read(key: Key) -> Seconds | None:
    """The times measured under this key; None where there are none, or the file is damaged."""
    path = _path(key)
    if not path.is_file():
        return None
    try:
        seconds = _parse(path, key)
    except ModelError as error:
        logger.warning("measuring the FFN modes anew: %s", error)
        return None
    logger.info("FFN modes as measured before: %s", path)
    return seconds


def _parse(path: Path, key: Key) -> Seconds:
    """Raises ModelError, unless it is what `write` writes."""
    stored = read_object(path)
    if stored.get("key") != key:
        raise ModelError(f"{path} was measured for something else")
    table = as_object(stored.get("seconds"), f"{path}: seconds")
    if [*table] != str(key["sizes"]).split():
        raise ModelError(f"{path}: seconds has the sizes {', '.join(table)}")
    modes = str(key["modes"]).split()
    return {int(n): _times(table[n], modes, f"{path}: seconds: {n}") for n in table}


def _times(times: object, modes: list[str], where: str) -> dict[FfnMode, float]:
    found: dict[FfnMode, float] = {}
    for name, value in as_object(times, where).items():
        if name not in modes or not isinstance(value, float) or not 0 < value < math.inf:
            raise ModelError(f"{where}: {name}={value!r} is no mode and its time")
        found[FfnMode(name)] = value
    if len(found) != len(modes):
        raise ModelError(f"{where}: has only {', '.join(found)}")
    return found


def write(key: Key, seconds: Seconds) -> None:
    """Whole or not at all, so that another start never reads half a file."""
    path = _path(key)
    text = json.dumps({"key": key, "seconds": seconds}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("FFN modes are measured at every start: no place to keep them (%s)", error)


def _path(key: Key) -> Path:
    digest = blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    return FOLDER / f"{digest}.json"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'cpu'}, {len(os.sched_getaffinity(0))} cores"


def _sources() -> str:
    """A hash of everything that could change what a mode takes."""
    here = Path(__file__).parent
    files = [here / "calibration.py", *here.glob("kernels/*.py"), *here.glob("sparsity/*.py")]
    content = b"".join(path.read_bytes() for path in sorted(files))
    return blake2b(content, digest_size=12).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
