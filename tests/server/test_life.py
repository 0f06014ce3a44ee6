"""Who leaves is forgotten, who waits is answered, and a dead engine is not hidden."""

import json
import threading
import time
from contextlib import suppress

import httpx
import pytest
from conftest import events, running

ENDLESS = {"model": "echo", "messages": [{"role": "user", "content": "endless slowly say:abc"}]}
CHAT = "/v1/chat/completions"


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def wait_for_end(response, seconds):
    """Read for so long, then go."""
    end = time.monotonic() + seconds
    for _ in response.iter_raw():
        if time.monotonic() > end:
            return


def test_leaving_a_stream_aborts_it_within_a_step(server):
    with server.client.stream("POST", CHAT, json=ENDLESS | {"stream": True, "n": 2}) as response:
        lines = response.iter_lines()
        while "abc"[0] not in next(lines):
            pass
        assert not server.idle()
    wait_for(lambda: not server.service.engine._streams, 1.0)
    server.wait_idle()


def test_leaving_an_answer_that_does_not_stream_aborts_it(server):
    with pytest.raises(httpx.ReadTimeout):
        server.client.post(CHAT, json=ENDLESS, timeout=0.3)
    wait_for(lambda: not server.service.engine._streams, 1.0)
    server.wait_idle()


def test_leaving_the_queue(checkpoint):
    """Eight at once on two rows: those that never ran are forgotten too."""
    with running(checkpoint, max_num_seqs=2) as server:
        threads = []
        for streamed in [True, False] * 4:

            def leave(streamed=streamed):
                body = ENDLESS | {"stream": streamed}
                with (
                    suppress(httpx.TimeoutException),
                    httpx.stream("POST", server.url + CHAT, json=body, timeout=0.4) as response,
                ):
                    wait_for_end(response, 0.4)

            threads.append(threading.Thread(target=leave))
        for thread in threads:
            thread.start()
        wait_for(lambda: server.service.engine.stats.num_waiting >= 4)
        for thread in threads:
            thread.join()
        wait_for(lambda: not server.service.engine._streams, 2.0)
        server.wait_idle()


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(checkpoint):
    with running(checkpoint, max_num_seqs=1, max_queued_requests=1) as server:
        with server.client.stream("POST", CHAT, json=ENDLESS | {"stream": True, "n": 2}):
            wait_for(lambda: not server.idle())
            response = httpx.post(server.url + CHAT, json=ENDLESS)
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "overloaded"
            assert response.headers["retry-after"] == "1"
        server.wait_idle()
        many = httpx.post(server.url + CHAT, json=ENDLESS | {"n": 3})
        assert many.json()["error"]["param"] == "n", "it could never be served"
        assert 'requests_refused_total{model_name="echo"} 1.0' in metrics(server)


def test_a_pool_too_small_for_a_request_is_said_before_it_runs(checkpoint):
    with running(checkpoint, num_pages=4) as server:
        response = server.chat("say:" + "x" * 60)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
        assert server.say("short")["message"]["content"] == "short"


def test_a_step_that_fails_fails_its_request_alone(server):
    response = server.chat("fail say:x")
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "generation_failed"
    assert "told to fail" in error["message"]
    assert server.say("fine")["message"]["content"] == "fine"


def test_a_failure_inside_a_stream_is_an_event_and_the_stream_still_ends(server):
    *_, error, done = events(server.chat("fail say:x", stream=True))
    assert json.loads(error)["error"]["code"] == "generation_failed"
    assert done == "[DONE]"
    server.wait_idle()


def test_a_dead_engine_is_told_to_everyone(checkpoint):
    with running(checkpoint) as server:
        found: list[str] = []
        body = ENDLESS | {"stream": True}
        open_stream = threading.Thread(
            target=lambda: found.extend(
                events(httpx.post(server.url + CHAT, json=body, timeout=30))
            )
        )
        open_stream.start()
        wait_for(lambda: server.service.engine.stats.num_running == 1)
        assert server.client.get("/health").status_code == 200
        died = server.chat("die say:x")
        assert died.status_code == 503
        assert died.json()["error"]["code"] == "engine_dead"
        open_stream.join(10)
        assert json.loads(found[-2])["error"]["code"] == "engine_dead"
        assert found[-1] == "[DONE]"
        health = server.client.get("/health")
        assert health.status_code == 503
        assert health.json()["error"]["code"] == "engine_dead"
        assert "exit code 3" in health.json()["error"]["message"]
        assert server.chat("say:x").status_code == 503


def metrics(server) -> str:
    return server.client.get("/metrics").text


def value(text: str, name: str) -> float:
    [line] = [x for x in text.splitlines() if x.startswith(f"turbosparse_{name}{{")]
    return float(line.rpartition(" ")[2])


def test_counters_equal_what_clients_were_told(checkpoint):
    with running(checkpoint) as server:
        usages = [server.chat(f"say:{'x' * i}", n=i).json()["usage"] for i in (1, 2, 3)]
        server.chat("say:abc", stream=True)
        text = metrics(server)
        assert value(text, "generation_tokens_total") == 4 + sum(
            u["completion_tokens"] for u in usages
        )
        assert 'request_success_total{finished_reason="stop",model_name="echo"} 7.0' in text
        assert value(text, "num_requests_running") == 0
        assert value(text, "ffn_active_fraction") == pytest.approx(0.1)
        assert value(text, "ffn_union_fraction") == pytest.approx(0.3)
        assert value(text, "time_to_first_token_seconds_count") == 7
        assert value(text, "e2e_request_latency_seconds_count") == 4


def test_health_says_what_runs(server):
    answer = server.client.get("/health").json()
    assert answer["status"] == "ok"
    assert answer["engine"]["family"] == "echo"
    assert answer["engine"]["kernels"] == {"ffn": "none"}


def test_models_say_whether_they_are_exact(server):
    cards = server.client.get("/v1/models").json()["data"]
    assert [c["id"] for c in cards] == ["echo", "alias", "turbosparse-tiny"]
    assert cards[0]["exact"] is True
    assert cards[0]["max_model_len"] == 2000
