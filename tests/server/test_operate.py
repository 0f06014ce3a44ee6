"""What an operator relies on: keys, limits, time-outs, readiness, draining, logs, traces."""

import base64
import json
import logging
import socket
import threading
import time

import httpx
import pytest
from conftest import events, running
from test_life import CHAT, ENDLESS, metrics, value, wait_for
from test_refusals import refused

from turbosparse.engine import logs
from turbosparse.engine.messages import Activity, StepStats
from turbosparse.server import readiness, stream
from turbosparse.server.app import Edge
from turbosparse.server.summary import Summary

SAY = {"messages": [{"role": "user", "content": "say:hi"}]}


# Keys


@pytest.fixture(scope="module")
def guarded(checkpoint):
    with running(checkpoint, Edge(api_keys=("first-key", "second-key"))) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_without_a_key_nothing_but_health_ready_and_metrics_answers(guarded):
    for path in ("/health", "/ready", "/metrics"):
        assert guarded.client.get(path).status_code == 200, path
    for path in ("/v1/models", "/docs", "/openapi.json", "/nothing", "/health/../v1/models"):
        response = guarded.client.get(path)
        assert refused(response, 401, None)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert response.headers["x-request-id"]
    refused(guarded.client.post(CHAT, json=SAY), 401, None)
    refused(guarded.client.post(CHAT, content=b"x" * 200_000), 401, None)


@pytest.mark.parametrize("key", ["", "first-key ", "third-key", "first-ke", "first-key\u00e9", ","])
def test_a_wrong_key_is_no_key(guarded, key):
    headers = {"Authorization": f"Bearer {key}x".encode("latin-1")}
    refused(guarded.client.post(CHAT, json=SAY, headers=headers), 401, None)


def test_every_key_works_however_a_client_presents_it(guarded):
    login = base64.b64encode(b"anyone:second-key").decode()
    for headers in (
        bearer("first-key"),
        bearer("second-key"),
        {"X-Api-Key": "first-key"},
        {"Authorization": f"Basic {login}"},
    ):
        assert guarded.client.post(CHAT, json=SAY, headers=headers).status_code == 200
    broken = {"Authorization": "Basic %%%"}
    refused(guarded.client.post(CHAT, json=SAY, headers=broken), 401, None)


def test_a_browser_is_asked_for_a_login(guarded):
    response = guarded.client.get("/", headers={"Accept": "text/html,*/*"})
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Basic")


# CORS


def test_other_origins_are_refused_unless_named(server, checkpoint):
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert server.client.options(CHAT, headers=asked).status_code == 405
    assert "access-control-allow-origin" not in server.client.get("/health", headers=asked).headers
    edge = Edge(cors_origins=("https://app.example",), api_keys=("k",))
    with running(checkpoint, edge) as named:
        allowed = named.client.options(CHAT, headers=asked)  # a browser asks without the key
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        answer = named.client.post(CHAT, json=SAY, headers=asked)
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = named.client.options(CHAT, headers=asked | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


# Limits


def raw(server, data: bytes) -> tuple[int, dict]:
    """What a server answers to bytes that no HTTP library would send."""
    where = httpx.URL(server.url)
    with socket.create_connection((where.host, where.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"x" * 9000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 900 + b"\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["long", "endless", "many", "url"],
)
def test_headers_have_a_limit(server, data):
    status, body = raw(server, data)
    assert status == 431
    assert "8,000 bytes" in body["error"]["message"]


def test_what_is_not_http_gets_our_error_too(server):
    status, body = raw(server, b"HELLO\r\n\r\n")
    assert status == 400
    assert body["error"]["type"] == "invalid_request_error"


def test_a_body_is_no_header_however_it_arrives(server):
    """The limit once counted the body that came in the same packet."""
    text = "say:" + "x" * 80_000
    refused(server.chat(text), 400, "messages")  # too long for the model, not for HTTP


def test_a_request_that_takes_too_long_is_ended(checkpoint):
    with running(checkpoint, request_timeout=0.4) as server:
        refusal = server.client.post(CHAT, json=ENDLESS)
        assert refused(refusal, 504, None)["code"] == "timeout"
        *_, error, done = events(server.client.post(CHAT, json=ENDLESS | {"stream": True, "n": 2}))
        assert json.loads(error)["error"]["code"] == "timeout"
        assert done == "[DONE]"
        server.wait_idle()
        assert 'finished_reason="error"' in metrics(server)
        assert server.say("quick")["message"]["content"] == "quick"


def test_a_client_that_stops_reading_is_given_up(checkpoint, monkeypatch, caplog):
    """It held its place in the queue, and a drain, for ever."""
    monkeypatch.setattr(stream, "SEND_SECONDS", 0.3)
    with running(checkpoint) as server:
        where = httpx.URL(server.url)
        body = json.dumps(ENDLESS | {"stream": True, "n": 40, "logprobs": True, "top_logprobs": 3})
        body = body.replace("slowly ", "")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((where.host, where.port))
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_for(lambda: server.service.num_open == 40)
            wait_for(lambda: server.service.num_open == 0, 20)
        wait_for(lambda: "stopped reading" in caplog.text)  # said when the others are gone
        server.wait_idle()


# Failures


def test_out_of_memory_in_a_step_is_a_503_of_its_requests_alone(server):
    response = server.chat("hungry say:x")
    assert refused(response, 503, None)["code"] == "out_of_memory"
    assert response.headers["retry-after"] == "1"
    *_, error, done = events(server.chat("hungry say:x", stream=True))
    assert json.loads(error)["error"]["code"] == "out_of_memory"
    assert done == "[DONE]"
    assert server.say("fine")["message"]["content"] == "fine"


def test_a_stuck_step_ends_the_engine_and_everyone_hears_why(checkpoint):
    with running(checkpoint, step_timeout=0.5) as server:
        response = server.chat("stuck say:x")
        assert refused(response, 503, None)["code"] == "engine_dead"
        assert "more than 0.5 s" in response.json()["error"]["message"]
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/ready").status_code == 503


def test_what_nobody_foresaw_is_a_500_with_a_request_id(checkpoint, monkeypatch, caplog):
    with running(checkpoint) as server:
        monkeypatch.setattr(server.service.metrics, "exposition", lambda: 1 / 0)
        response = server.client.get("/metrics", headers={"X-Request-Id": "mine"})
        refused(response, 500, None)
        assert response.headers["x-request-id"] == "mine"
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        assert 'route="/metrics",status="500"} 1.0' in metrics(server)


# Readiness and draining


def test_ready_makes_a_token_and_remembers_it(checkpoint):
    with running(checkpoint) as server:
        assert server.client.get("/ready").json() == {"status": "ready"}
        steps = value(metrics(server), "steps_total")
        assert steps >= 1
        assert server.client.get("/ready").status_code == 200
        assert value(metrics(server), "steps_total") == steps, "one token is proof for seconds"
        assert value(metrics(server), "generation_tokens_total") == 0, "no client's"


def test_not_ready_while_a_step_hangs(checkpoint, monkeypatch):
    monkeypatch.setattr(readiness, "PROBE_SECONDS", 0.3)
    with running(checkpoint) as server:
        hold = threading.Thread(target=server.chat, args=("stuck say:x",))
        hold.start()
        wait_for(lambda: server.service.engine._streams)
        response = server.client.get("/ready")
        assert response.status_code == 503
        assert "no token within" in response.json()["error"]["message"]
        server.service.engine._process.kill()
        hold.join()


def test_draining_finishes_what_runs_and_sends_newcomers_away(checkpoint):
    with running(checkpoint, shutdown_timeout=20) as server:
        body = SAY | {"stream": True}
        body["messages"] = [{"role": "user", "content": "slowly say:" + "x" * 60}]
        with httpx.stream("POST", server.url + CHAT, json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.drain()
            wait_for(lambda: server.client.get("/ready").status_code == 503)
            assert server.client.get("/ready").json()["error"]["code"] == "shutting_down"
            assert server.client.get("/health").status_code == 200
            refusal = server.client.post(CHAT, json=SAY)
            assert refused(refusal, 503, None)["code"] == "shutting_down"
            assert refusal.headers["retry-after"] == "1"
            *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"
        server._thread.join(10)
        assert not server._thread.is_alive()


def test_draining_cuts_what_takes_too_long(checkpoint):
    with running(checkpoint, shutdown_timeout=0.3) as server:
        with httpx.stream("POST", server.url + CHAT, json=ENDLESS | {"stream": True}) as answer:
            server.drain()
            answer.read()
        *_, error, done = events(answer)
        assert "shutting down" in json.loads(error)["error"]["message"]
        assert done == "[DONE]"
        server._thread.join(10)
        assert not server._thread.is_alive()


# Logs, metrics, traces


def test_json_lines_name_the_request():
    record = logging.LogRecord("a.b", logging.WARNING, "f", 1, "half %d", (5,), None)
    token = logs.request_id.set("mine")
    line = json.loads(logs.JsonLines().format(record))
    logs.request_id.reset(token)
    assert (line["level"], line["logger"], line["message"]) == ("warning", "a.b", "half 5")
    assert line["request_id"] == "mine"
    assert line["time"].endswith("Z")


def test_the_access_log_leaves_out_what_machines_ask(checkpoint, caplog):
    with caplog.at_level(logging.INFO), running(checkpoint, Edge(access_log=True)) as server:
        server.client.get("/health")
        server.client.get("/v1/models")
    lines = [r.getMessage() for r in caplog.records if r.name == "turbosparse.server.access"]
    assert len(lines) == 1
    assert lines[0].startswith("GET /v1/models 200")


def test_a_summary_only_of_what_happened():
    summary = Summary()
    assert summary.line(10) is None
    summary.step(
        StepStats(
            num_running=3,
            num_pages=10,
            num_pages_held=5,
            num_prefill_tokens=40,
            num_decode_tokens=60,
            ffn_mode="union",
            activity=Activity([0.1, 0.3], [0.4, 0.4]),
        )
    )
    line = summary.line(10)
    for part in ("prompt 4.0 tok/s", "generation 6.0 tok/s", "3 running", "K/V 50.0%", "20.0% of"):
        assert part in line
    assert summary.line(10) is None


def test_metrics_of_a_request(checkpoint):
    with running(checkpoint) as server:
        for _ in range(2):
            usage = server.chat("say:" + "y" * 40).json()["usage"]
        server.client.get("/v1/nothing")
        text = metrics(server)
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached > 0
    assert value(text, "prompt_tokens_cached_total") == cached
    assert value(text, "prompt_tokens_total") == 2 * usage["prompt_tokens"]
    for name in ("queue_time", "prefill_time", "decode_time", "inference_time"):
        assert value(text, f"request_{name}_seconds_count") == 2, name
    assert value(text, "request_generation_tokens_sum") == 2 * usage["completion_tokens"]
    assert 'method="GET",model_name="echo",route="none",status="404"} 1.0' in text
    assert 'route="/v1/chat/completions",status="200"} 2.0' in text
    assert "process_resident_memory_bytes" in text


class Collector(threading.Thread):
    """Takes OTLP over HTTP, as a real collector does."""

    def __init__(self) -> None:
        from http.server import BaseHTTPRequestHandler, HTTPServer

        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        self.spans: list = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                request = ExportTraceServiceRequest.FromString(data)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        super().__init__(target=self.server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"


def test_a_span_continues_the_clients_trace_and_carries_the_usage(checkpoint):
    from turbosparse.server.tracing import Tracing

    collector = Collector()
    collector.start()
    tracing = Tracing(collector.url)
    try:
        with running(checkpoint, Edge(tracing=tracing.middleware)) as server:
            server.service.on_ended.append(tracing.ended)
            trace = "0af7651916cd43dd8448eb211c80319c"
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            for stream in (False, True):
                server.client.post(CHAT, json=SAY | {"stream": stream}, headers=headers)
            server.client.get("/health", headers=headers)
        tracing.close()
    finally:
        collector.server.shutdown()
        collector.join()
        collector.server.server_close()
    assert len(collector.spans) == 2
    for span in collector.spans:
        assert span.name == "POST /v1/chat/completions"
        assert span.trace_id.hex() == trace
        found = {a.key: a.value for a in span.attributes}
        assert found["gen_ai.usage.output_tokens"].int_value == 3
        assert found["http.response.status_code"].int_value == 200
        assert found["gen_ai.response.time_to_first_chunk"].double_value > 0


def test_a_slow_probe_does_not_hold_up_the_others(server):
    started = time.monotonic()
    threads = [threading.Thread(target=server.client.get, args=("/ready",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 5
