"""One thread for the tests' tensors: they are tiny, and the machine may have one core to give."""

import os
import sys
from pathlib import Path

import pytest
import torch

from turbosparse.models import calibration_cache

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

HERE = Path(__file__).parent
for folder in (HERE / "engine", HERE / "models", HERE / "server", HERE.parent / "benchmarks"):
    sys.path.insert(0, str(folder))


def pytest_configure() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def _calibrations_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither take the user's measurements nor leave theirs."""
    calibration_cache.FOLDER = tmp_path_factory.mktemp("calibration")
