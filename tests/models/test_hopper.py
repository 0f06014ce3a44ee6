"""Kernels compiled for a Hopper, which no interpreter asks how much shared memory they need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SHARED = 227 << 10  # bytes of a program


def test_kernels_compile_and_fit_its_shared_memory():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("hopper_compiler.py")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in kernels] == ["product_kernel"] * 6 + [
        "values_kernel", "down_kernel", "values_kernel", "down_kernel",
        "one_kernel", "few_kernel", "few_kernel",
        "sort_kernel", "product_kernel", "product_kernel",
        "sort_kernel", "product_kernel", "product_kernel", "add_kernel", "best_kernel",
    ]  # fmt: skip
    assert all(shared <= SHARED for _, shared, _ in kernels)
    assert {name for name, shared, _ in kernels if not shared} == {"add_kernel"}
    # no tile, no product of tensor cores
    alone = {"one_kernel", "sort_kernel", "add_kernel", "best_kernel"}
    assert {name for name, _, products in kernels if not products} == alone
