"""Several processes make of a model what one makes of it: sharded, and after an interruption."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dense_models import command, make_home
from safetensors.torch import load_file

from turbosparse.server.cli import main

SCRIPT = Path(__file__).with_name("fsdp_on_cpu.py")
TOGETHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
SETTINGS = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
STEPS = {"tokens": 8 * 256, "save-steps": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """With `one`, which a single process made."""
    folder = make_home(tmp_path_factory.mktemp("processes"))
    torch.set_num_threads(1)
    with torch.enable_grad():
        assert main(command(folder, folder / "one", "mistral", **STEPS)) == 0
    return folder


def start(home: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, *TOGETHER, *command(home, out, "mistral", *more, **STEPS)]
    return subprocess.Popen(
        words, env=SETTINGS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def assert_same(one: Path, other: Path) -> None:
    want, got = (load_file(out / "model.safetensors") for out in (one, other))
    assert want.keys() == got.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.slow
def test_sharded_processes_make_what_one_process_makes(home, tmp_path):
    finish(start(home, tmp_path / "out", "--fsdp", "--gradient-checkpointing"))
    assert_same(home / "one", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [["--fsdp"], []], ids=["fsdp", "ddp"])
def test_processes_that_are_stopped_go_on(home, tmp_path, sharded):
    out = tmp_path / "out"
    process = start(home, out, *sharded)
    assert process.stdout is not None
    for line in process.stdout:
        if "step      4/8" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=240)
    assert not out.exists()
    checkpoint = max((tmp_path / "out.training").glob("checkpoint-*"), key=lambda p: p.name)
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir() == bool(sharded)
    assert int(checkpoint.name[-1]) in range(4, 8)
    finish(start(home, out, *sharded, "--resume"))
    assert_same(home / "one", out)


def test_fsdp_is_refused_where_it_would_be_ignored(home, tmp_path, capsys):
    with torch.enable_grad():
        assert main(command(home, tmp_path / "out", "llama", "--fsdp")) == 1
    assert "--fsdp: there are not several GPUs" in capsys.readouterr().err
