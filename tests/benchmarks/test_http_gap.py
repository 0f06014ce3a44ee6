"""The HTTP benchmark's arithmetic; and one real stream."""

import sys

import http_gap
import pytest

from turbosparse.server.commands.bench import Load


def test_the_prompt_is_not_in_the_speed():
    load = Load(1, num_tokens=5, seconds=9.0, first=[8.0], between=[0.25, 0.25, 0.25, 0.25])
    assert http_gap.speed_of(load) == 4.0


@pytest.mark.slow
def test_one_stream_against_the_bare_step(monkeypatch, capsys):
    flags = "--synthetic turbosparse-mistral-16m --layers 1 --device cpu --dtype float32"
    few = "--prompt-tokens 8 --max-tokens 12 --rounds 1"
    monkeypatch.setattr(sys, "argv", ["http_gap.py", *flags.split(), *few.split()])
    http_gap.main()
    assert "one stream over HTTP" in capsys.readouterr().out


def test_too_slow_a_stream_fails(monkeypatch, capsys):
    monkeypatch.setattr(http_gap, "streamed", lambda args: (1.0, http_gap.FfnMode.UNION))
    monkeypatch.setattr(http_gap, "stepped", lambda args, mode: 2.0)
    monkeypatch.setattr(sys, "argv", ["http_gap.py", "--device", "cpu", "--must", "0.9"])
    with pytest.raises(SystemExit, match=r"less than 90\.0%"):
        http_gap.main()
    assert "one stream over HTTP 1.0 tok/s, bare step 2.0: 50.0%" in capsys.readouterr().out
