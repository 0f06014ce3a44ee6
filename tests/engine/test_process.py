"""Life and death across the pipe: each of these has hung, leaked or lied in some server."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from scripted import expected

from turbosparse.engine.client import EngineClient
from turbosparse.engine.config import EngineConfig
from turbosparse.engine.errors import EngineDeadError, EngineStartError
from turbosparse.engine.request import SamplingParams

HERE = Path(__file__).parent


@asynccontextmanager
async def engine(build: str = "build"):
    client = await EngineClient.start(EngineConfig(model="m"), f"scripted_process:{build}")
    try:
        yield client
    finally:
        await client.close()
        assert client._process.exitcode is not None, "a zombie is left"


async def collect(stream):
    outputs = []
    while not outputs or outputs[-1].finish is None:
        outputs += await asyncio.wait_for(stream.take(), 20)
    return outputs


async def take_for_ever(stream):
    while True:
        await stream.take()


def params(max_tokens=5, **sampling):
    return SamplingParams(max_tokens=max_tokens, **sampling)


async def test_many_requests_get_their_own_tokens_and_stats_arrive():
    async with engine() as client:
        seen = []
        client.on_step.append(seen.append)
        prompts = {f"r{i}": [100 + i, *range(20)] for i in range(20)}
        streams = {n: client.submit(n, p, params()) for n, p in prompts.items()}
        for name, stream in streams.items():
            got = [o.token_id for o in await collect(stream)]
            assert got == expected(prompts[name], 5)
        # 19 of the 20 tokens after the first differ by prompt, so none is shared
        assert sum(s.num_prefill_tokens for s in seen) == 20 * 21
        assert client.stats.num_pages == 2000
        assert client.dead is None


async def test_abort_ends_the_request_in_the_engine():
    async with engine() as client:
        stream = client.submit("a", [1], params(3000))
        await stream.take()
        client.abort(["a", "a", "unknown"])
        for _ in range(500):
            await asyncio.sleep(0.01)
            if client.stats.num_running == 0:
                break
        assert client.stats.num_running == 0
        assert client.stats.num_pages_held == 0


async def test_an_error_in_a_step_reaches_its_request_and_the_engine_goes_on():
    async with engine() as client:
        (output,) = await collect(client.submit("bad", [13], params()))
        assert output.error == "the step failed: ValueError: thirteen"
        good = await collect(client.submit("good", [1], params()))
        assert [o.token_id for o in good] == expected([1], 5)


async def test_a_long_prompt_does_not_block_the_loop():
    async with engine() as client:
        started = time.perf_counter()
        stream = client.submit("a", [1] * 3900, params(1))
        assert time.perf_counter() - started < 0.1
        assert len(await collect(stream)) == 1


def test_a_burst_that_fills_the_pipe_arrives_whatever_the_loop():
    """uvloop makes what it watches non-blocking: the sender died of a full pipe, in silence."""

    async def burst() -> None:
        async with engine() as client:
            prompts = [[100 + i, *range(100, 900)] for i in range(300)]  # half a megabyte
            streams = [client.submit(f"r{i}", p, params(2)) for i, p in enumerate(prompts)]
            for prompt, stream in zip(prompts, streams, strict=True):
                assert [o.token_id for o in await collect(stream)] == expected(prompt, 2)

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(burst())


async def test_a_start_that_fails_says_why():
    with pytest.raises(EngineStartError, match="ValueError: m is no model"):
        async with engine("refuse"):
            pass
    with pytest.raises(EngineStartError, match="exit code 9"):
        async with engine("crash"):
            pass


async def test_when_the_engine_dies_everyone_hears_of_it():
    async with engine() as client:
        streams = [client.submit(f"r{i}", [1, i], params(3000)) for i in range(3)]
        for stream in streams:
            await stream.take()
        client.submit("killer", [66], params())
        reason = await asyncio.wait_for(client.wait_dead(), 20)
        assert reason == client.dead == "the engine process ended with exit code 7"
        for stream in streams:
            with pytest.raises(EngineDeadError, match="exit code 7"):
                await take_for_ever(stream)
        with pytest.raises(EngineDeadError):
            client.submit("late", [1], params())
        client.abort(["r0"])  # no error


async def test_a_killed_engine_is_noticed_even_when_idle():
    async with engine() as client:
        os.kill(client._process.pid, signal.SIGKILL)
        assert "exit code -9" in await asyncio.wait_for(client.wait_dead(), 20)


async def test_a_stuck_step_is_noticed_and_says_where_it_is(capfd):
    async with engine() as client:
        watching = asyncio.create_task(client.watch(0.5))
        stream = client.submit("a", [44], params())
        reason = await asyncio.wait_for(client.wait_dead(), 20)
        assert reason == "a step has taken more than 0.5 s"
        with pytest.raises(EngineDeadError, match="a step has taken"):
            await take_for_ever(stream)
        await watching
    assert "scripted_process.py" in capfd.readouterr().err, "the stack of the step"


async def test_a_slow_or_idle_engine_is_not_stuck():
    async with engine() as client:
        watching = asyncio.create_task(client.watch(0.4))
        assert len(await collect(client.submit("a", [1], params(300)))) == 300  # 2 ms each
        await asyncio.sleep(0.6)
        assert len(await collect(client.submit("b", [1], params(5)))) == 5
        assert client.dead is None
        watching.cancel()


async def test_times_of_a_request_are_reported_when_it_ends():
    async with engine() as client:
        seen = []
        client.on_step.append(seen.append)
        await collect(client.submit("a", [1], params(10)))
        [times] = [t for stats in seen for t in stats.ended]
        assert times.num_output_tokens == 10
        assert 0 <= times.queued < 1
        assert times.prefill >= 0.002
        assert times.decode >= 9 * 0.002


async def test_the_engine_ignores_the_signals_of_its_group():
    async with engine() as client:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(client._process.pid, number)
        assert len(await collect(client.submit("a", [1], params()))) == 5


PARENT = """
import asyncio, sys
sys.path.insert(0, {here!r})
from turbosparse.engine.client import EngineClient
from turbosparse.engine.config import EngineConfig
from turbosparse.engine.request import SamplingParams

async def main():
    client = await EngineClient.start(EngineConfig(model="m"), "scripted_process:build")
    if {busy}:
        client.submit("a", [1], SamplingParams(max_tokens=3000))
    print(client._process.pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_the_engine_does_not_outlive_a_killed_parent(tmp_path, busy):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(here=str(HERE), busy=busy))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and is_alive(pid):
        time.sleep(0.05)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may reap it here


def test_the_client_does_not_import_torch():
    """It costs the API process seconds and hundreds of megabytes."""
    code = "import sys, turbosparse.engine.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
