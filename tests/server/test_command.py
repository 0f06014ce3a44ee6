"""The command as a user runs it, with the bundled model: start, chat, drain, death, refusals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import openai
import psutil
import pytest

from turbosparse.server.cli import main

COMMAND = [sys.executable, "-m", "turbosparse.server"]
LONG = {"messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, "max_tokens": 300}


@contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    """The process, its URL and what it printed."""
    command = [*COMMAND, "serve", "--port", "0", "--threads", "1", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    printed: list[str] = []
    try:
        for line in process.stdout:
            printed.append(line)
            if found := re.search(r"url +(http\S+)", line):
                reader = threading.Thread(target=lambda: printed.extend(process.stdout))
                reader.start()
                yield process, found[1], printed
                break
        else:
            raise AssertionError("".join(printed))
    finally:
        process.kill()
        process.wait()
    reader.join()
    process.stdout.close()


def test_the_bundled_model_answers_and_says_what_it_is():
    with serving() as (process, url, printed):
        said = "".join(printed)
        for label in ("model", "family", "function", "device", "kernels", "pages", "url"):
            assert len(re.findall(rf"^ +{label}  ", said, re.M)) == 1, f"{label} once: {said}"
        assert "bamboo" in said
        assert "exact" in said
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            chunks = client.chat.completions.create(
                model="turbosparse-tiny",
                messages=[{"role": "user", "content": "Hello!"}],
                temperature=0,
                stream=True,
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert re.fullmatch(r"[\w ,.!?'’-]+", text), text
        assert re.search(r"\b(hello|hi|help|you)\b", text.lower()), text
        # Draining: the open stream ends whole, newcomers are refused, and the exit status is 0.
        body = LONG | {"stream": True, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2][6:])["usage"]["completion_tokens"] == 300
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_killed_engine_ends_the_server_with_an_error():
    with serving() as (process, url, printed):
        [engine] = [p for p in psutil.Process(process.pid).children() if "spawn" in p.cmdline()[-2]]
        body = LONG | {"stream": True, "max_tokens": 900}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            engine.kill()
            rest = [line for line in lines if line.startswith("data: ")]
        assert json.loads(rest[-2][6:])["error"]["code"] == "engine_dead"
        assert rest[-1] == "data: [DONE]"
        assert httpx.get(f"{url}/health").status_code == 503
        assert process.wait(30) == 1
    assert "exit code -9" in "".join(printed)


def test_a_killed_server_takes_its_engine_with_it():
    with serving() as (process, _, _):
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        gone, alive = psutil.wait_procs(children, timeout=20)
        assert gone
        assert not alive


def refuse(*argv: str) -> str:
    """What a command that must fail says."""
    done = subprocess.run([*COMMAND, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_what_cannot_be_served_is_said_without_a_traceback(tmp_path):
    assert "no directory ./nothing" in refuse("serve", "./nothing")
    assert "tokenizer.json is missing" in refuse("serve", str(tmp_path))
    assert "--port" in refuse("serve", "--port", "x")
    assert "max_model_len=9999" in refuse("serve", "--port", "0", "--max-model-len", "9999")


def test_a_port_in_use_is_noticed_before_the_model_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refuse("serve", "--port", str(taken.getsockname()[1]))
    assert "cannot listen" in said
    assert "Loading" not in said


def test_a_signal_while_loading_ends_it_quietly():
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stderr:
        if "Loading" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 0
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("name", "family", "planted"),
    [
        ("turbosparse-mixtral-30m", "turbosparsemixtral", "predictors planted to keep 15%"),
        pytest.param(
            "bamboo-16m", "bamboo", "gates planted to open for 35%", marks=pytest.mark.slow
        ),
    ],
)
def test_a_synthetic_model_answers_and_says_what_it_is(name, family, planted):
    flags = ("--synthetic", name, "--synthetic-layers", "1")
    with serving(*flags, "--ffn-mode", "union") as (_, url, printed):
        label = f"random weights of seed 0, {planted} of the neurons"
        assert f" SYNTHETIC  {label}" in "".join(printed)
        (card,) = httpx.get(f"{url}/v1/models").json()["data"]
        assert card["id"] == name
        assert label in card["synthetic"]
        engine = httpx.get(f"{url}/health").json()["engine"]
        assert engine["synthetic"] == card["synthetic"]
        assert engine["family"] == family
        said = httpx.post(f"{url}/v1/chat/completions", json=LONG | {"max_tokens": 3}, timeout=60)
        assert said.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--synthetic", "mistral-16m", "models/tiny"], "stands instead of a MODEL, but models/ti"),
        (["--synthetic", "gpt"], "synthetic='gpt' is not one of turbosparse-mistral-7b, turbo"),
        (["--synthetic", "mistral-16m", "--synthetic-density", "0.2"], "is a SiLU model"),
        (["--synthetic-layers", "2"], "--synthetic-layers needs --synthetic"),
        (["--synthetic", "mistral-16m", "--synthetic-layers", "0"], "0 is less than 1"),
    ],
)
def test_what_no_synthetic_model_can_be_is_refused(flags, message, capsys):
    assert main(["serve", *flags]) == 1
    assert message in capsys.readouterr().err
