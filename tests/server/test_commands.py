"""The commands that are not `serve`, as their users run them."""

import io
import json
import logging
import ssl
import subprocess
import sys

import httpx
import pytest
from conftest import running
from echo_engine import CONTEXT
from test_command import COMMAND, serving

from turbosparse.server.app import Edge
from turbosparse.server.cli import main


@pytest.fixture(autouse=True)
def _keep_the_log():
    """A command that runs in this process sends the log where the test's stderr was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_chat_asks_one_question(server, capsys):
    asked = ["chat", "--url", server.url, "--quick", "say:good day", "--stats"]
    assert main(asked) == 0
    out, err = capsys.readouterr()
    assert out == "good day\n"
    assert "9 tokens, first after" in err


def test_chat_remembers_until_told_to_start_anew(server, capsys, monkeypatch):
    asked: list[list[dict]] = []
    complete = server.service.chat

    async def listen(body):
        asked.append([m.text for m in body.messages])
        return await complete(body)

    monkeypatch.setattr(server.service, "chat", listen)
    monkeypatch.setattr(sys, "stdin", io.StringIO("say:one\nsay:two\n\nsay:three\n"))
    assert main(["chat", "--url", server.url, "--system", "be brief"]) == 0
    assert asked == [
        ["be brief", "say:one"],
        ["be brief", "say:one", "one", "say:two"],
        ["be brief", "say:three"],
    ]
    assert "two" in capsys.readouterr().out


def test_complete_reads_what_is_piped(server, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("say:from a pipe"))
    assert main(["complete", "--url", server.url, "--max-tokens", "6"]) == 0
    assert capsys.readouterr().out == "from a\n"


def test_a_refusal_is_said_in_the_servers_words(server, capsys, monkeypatch):
    assert main(["complete", "x" * CONTEXT, "--url", server.url]) == 1
    assert "turbosparse: error: 400: this model's context holds" in capsys.readouterr().err
    assert main(["chat", "--url", server.url, "--quick", "fail say:x"]) == 1
    assert "told to fail" in capsys.readouterr().err
    monkeypatch.setenv("TURBOSPARSE_URL", "http://127.0.0.1:9")
    assert main(["chat", "--quick", "x"]) == 1
    assert "no answer from the server" in capsys.readouterr().err


def test_a_key_opens_a_guarded_server(checkpoint, capsys, monkeypatch):
    with running(checkpoint, Edge(api_keys=("k1",))) as server:
        asked = ["chat", "--url", server.url, "--quick", "say:in"]
        assert main(asked) == 1
        assert "401: no API key" in capsys.readouterr().err
        monkeypatch.setenv("TURBOSPARSE_API_KEY", "k1,k2")
        assert main(asked) == 0


def test_bench_says_what_failed(server, capsys):
    """The echo engine's vocabulary ends at 300, the prompts' does not."""
    asked = ["bench", "--url", server.url, "--concurrency", "2", "--requests", "1"]
    assert main(asked) == 1
    err = capsys.readouterr().err
    assert "failed: " in err
    assert "prompt" in err
    assert main([*asked, "some/model"]) == 1
    assert "--url" in capsys.readouterr().err


def test_collect_env_says_what_runs_but_no_secret(capsys, monkeypatch):
    monkeypatch.setenv("TURBOSPARSE_API_KEY", "hidden")
    assert main(["collect-env"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "processor" in said
    assert "hidden" not in said


BATCH = [
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
     "body": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}},
    {"custom_id": "b", "method": "POST", "url": "/v1/completions",
     "body": {"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}},
    {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {"prompt": 7}},
    {"custom_id": "d", "method": "GET", "url": "/v1/completions", "body": {}},
    {"custom_id": "e", "method": "POST", "url": "/v1/completions", "body": {"stream": True}},
]  # fmt: skip


def test_run_batch_answers_every_line(tmp_path):
    given, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in BATCH) + "\nno JSON\n")
    flags = ["-i", given, "-o", answers, "--threads", "1"]
    done = subprocess.run(
        [*COMMAND, "run-batch", *flags], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 answered, 4 refused" in done.stderr
    found = {line["custom_id"]: line for line in map(json.loads, answers.read_text().splitlines())}
    assert found.keys() == {"a", "b", "c", "d", "e", None}
    assert found["a"]["response"]["status_code"] == 200
    assert found["a"]["response"]["body"]["choices"][0]["message"]["content"]
    assert found["b"]["response"]["body"]["usage"]["completion_tokens"] == 4
    assert found["c"]["response"]["status_code"] == 400
    assert found["c"]["response"]["body"]["error"]["param"].startswith("prompt")
    assert "POST" in found["d"]["error"]["message"]
    assert "streams" in found["e"]["error"]["message"]
    assert "not JSON" in found[None]["error"]["message"]


def test_run_batch_needs_its_files(capsys, tmp_path):
    assert main(["run-batch"]) == 1
    assert "--input-file and --output-file" in capsys.readouterr().err
    missing = ["--input-file", str(tmp_path / "no"), "--output-file", str(tmp_path / "out")]
    assert main(["run-batch", *missing]) == 1
    assert "--input-file" in capsys.readouterr().err


def test_https_and_json_logs(tmp_path):
    """One server for what needs the whole command: certificates, log lines of both processes."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", key, "-out", certificate]
    subprocess.run([*make, *subject, *files], check=True, capture_output=True)
    tls = ["--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)]
    with serving(*tls, "--log-format", "json") as (_, url, printed):
        assert url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{url}/ready", verify=context).json() == {"status": "ready"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/ready")
    lines = [json.loads(line) for line in printed if line.startswith("{")]
    said = [line["message"] for line in lines]
    assert any("settings" in m for m in said)
    assert any("kernels ready" in m for m in said), "the engine's process too"
    assert len({line["process"] for line in lines}) == 2


def test_files_of_tls_are_read_before_the_model(tmp_path, capsys):
    assert main(["serve", "--ssl-certfile", str(tmp_path / "no.pem")]) == 1
    assert "--ssl-certfile" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_measures_a_server_of_its_own(capsys, tmp_path):
    file = tmp_path / "loads.json"
    flags = ["--concurrency", "2", "--requests", "1", "--max-tokens", "8", "--json", str(file)]
    assert main(["bench", "--serve-flags", "--threads 1", *flags]) == 0
    [load] = json.loads(file.read_text())
    assert (load["num_tokens"], load["num_complete"], load["errors"]) == (16, 2, [])
    assert "tok/s" in capsys.readouterr().out
