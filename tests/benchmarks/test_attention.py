"""The attention benchmark on a CPU: both ways are timed, and the bytes are those that are read."""

import sys

import attention
import decode
import pytest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(decode, "REPLAYS", 2)
    monkeypatch.setattr(attention, "bandwidth", lambda device: 1e10)


def run(monkeypatch, capsys, *flags: str) -> list[list[str]]:
    shape = ("--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--budget", "64")
    machine = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
    monkeypatch.setattr(sys, "argv", ["attention.py", *shape, *machine, *flags])
    attention.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_for_each_batch_and_context(monkeypatch, capsys):
    rows = run(monkeypatch, capsys, "--batch", "1", "3", "--context", "50", "400")
    assert [row[:2] for row in rows] == [["1", "50"], ["3", "50"], ["1", "400"], ["3", "400"]]
    assert all(float(row[i]) > 0 for row in rows for i in (2, 4))
    assert run(monkeypatch, capsys, "--gate-rank", "8", "--batch", "1", "--context", "400")


def test_the_bytes_that_are_read(monkeypatch):
    flags = ("--kv-heads", "2", "--head-dim", "16", "--device", "cpu", "--dtype", "float32")
    monkeypatch.setattr(sys, "argv", ["attention.py", *flags])
    layers = attention.Layers(attention.arguments(), 3, 160)
    token = 2 * 2 * 16 * 4
    assert layers.bytes(None) == layers.bytes(200) == 3 * 160 * token
    assert layers.bytes(64) == 3 * (64 + 10) * token, "a summary is as large as a token"
