"""Compiles the CPU kernels, keeps them from one start to the next, and hands them their tensors.

numba keeps a compiled function for as long as the function's own file stays as it is; but kernels
inline each other across files. So what is kept lies in a folder named after all their contents.
"""
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

logger = logging.getLogger(__name__)


def _folder() -> Path | None:
    """Where compiled kernels lie: below NUMBA_CACHE_DIR or the user's cache; None if nowhere."""
    base = Path(config.CACHE_DIR) if config.CACHE_DIR else Path.home() / ".cache" / "turbosparse"
    sources = sorted(Path(__file__).parent.glob("cpu*.py"))
    digest = blake2b(b"".join(path.read_bytes() for path in sources), digest_size=8).hexdigest()
    folder = base / f"kernels-{digest}"
    if not folder.is_dir():
        logger.info("compiling the CPU kernels, once: this takes about half a minute")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        logger.warning("kernels are compiled at every start: no place to keep them (%s)", error)
        return None
    return folder


FOLDER = _folder()
if FOLDER is not None:
    config.CACHE_DIR = str(FOLDER)


def kernel(**options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A compiled function that Python calls; it lets go of the interpreter's lock meanwhile."""
    return njit(nogil=True, cache=FOLDER is not None, **options)


def are_compiled() -> bool:
    """Whether a start finds kernels that an earlier one has left."""
    return FOLDER is not None and any(FOLDER.rglob("*.nbc"))


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


# Tensors cross as `data_ptr()`: numba takes longer over an array argument than a small kernel runs.
# Each of these is the contiguous array of that shape at an address.


@njit
def floats(address, shape):
    return carray(_pointer(address), shape, np.float32)


@njit
def doubles(address, shape):
    return carray(_pointer(address), shape, np.float64)


@njit
def longs(address, shape):
    return carray(_pointer(address), shape, np.int64)


@njit
def ints(address, shape):
    return carray(_pointer(address), shape, np.int32)


@njit
def bools(address, shape):
    return carray(_pointer(address), shape, np.bool_)
