"""The examples as a reader runs them, against the server that says what it is told."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = {"openai_chat.py": 5, "langchain_chat.py": 3, "anthropic_messages.py": 2}


def run(*command: str | Path, folder: Path = EXAMPLES) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", LINES)
def test_python(server, name):
    printed = run(sys.executable, name, server.url).strip().splitlines()
    assert len(printed) >= LINES[name]
    assert all(printed[-LINES[name] :])


def test_curl(server):
    printed = run("bash", "curl.sh", server.url)
    assert "data: [DONE]" in printed
    assert '"token_logprobs":[null,' in printed


def test_node(server, tmp_path):
    shutil.copy(EXAMPLES / "openai_chat.mjs", tmp_path)
    node, npm = (Path(sys.executable).with_name(name) for name in ("node", "npm"))
    run(npm, "install", "--silent", "--no-audit", "--no-fund", "openai", folder=tmp_path)
    printed = run(node, "openai_chat.mjs", server.url, folder=tmp_path)
    assert printed.splitlines()[-1].startswith("weather { city: '")


def environment(folder: Path, *packages: str) -> Path:
    """Packages whose wishes do not go with ours, in an environment of their own."""
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "pip", "install", "--quiet", *packages, folder=folder)
    return folder / "bin"


@pytest.mark.slow
def test_litellm(server, tmp_path):
    binaries = environment(tmp_path / "venv", "litellm")
    printed = run(binaries / "python", EXAMPLES / "litellm_chat.py", server.url, folder=tmp_path)
    assert len(printed.strip().splitlines()) >= 2


@pytest.mark.slow
def test_an_evaluation_runs_through_the_server(server, tmp_path, checkpoint):
    """lm-evaluation-harness scores every choice with echo and logprobs."""
    binaries = environment(tmp_path / "venv", "lm-eval[api]", "transformers")
    where = f"base_url={server.url}/v1/completions"
    printed = run(
        binaries / "lm_eval",
        *("--model", "local-completions", "--include_path", ".", "--tasks", "colours"),
        *("--model_args", f"model=echo,{where},tokenizer={checkpoint}"),
        folder=EXAMPLES / "lm_eval",
    )
    assert "|acc   |" in printed, printed
