"""The step benchmark on tiny models and a CPU: every path is measured, or says why it was not."""

import json
import sys
from dataclasses import replace

import crossover
import decode
import engine_steps
import plot
import pytest
import ratios
import roof
import step
import torch
from rows import Row

from turbosparse.models import calibration
from turbosparse.models.batch import FfnMode
from turbosparse.models.load import load
from turbosparse.models.tools import shapes
from turbosparse.models.tools.shapes import Shape

CPU = torch.device("cpu")
TINY = Shape(hidden=64, layers=1, neurons=128, vocab=300, heads=4, kv_heads=2, positions=512)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The small names, smaller; and few repetitions."""
    for name, named in shapes.NAMES.items():
        if named.dtype == "float32":
            monkeypatch.setitem(shapes.NAMES, name, replace(named, shape=TINY))
    monkeypatch.setattr(decode, "WARM_UP", 1)
    monkeypatch.setattr(decode, "REPLAYS", 2)
    monkeypatch.setattr(engine_steps, "REPEATS", 1)
    monkeypatch.setattr(calibration, "SECONDS", 0)
    monkeypatch.setattr(step, "bandwidth", lambda device: 1e10)


def run(monkeypatch, tmp_path, *flags: str, model="turbosparse-mistral-16m") -> dict:
    out = tmp_path / "results" / "run"
    command = [
        "step.py",
        "--model",
        model,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(out), *flags])
    step.main()
    return json.loads(out.with_suffix(".json").read_text())


def drawn(tmp_path, family: str, **changes):
    shape = replace(TINY, **changes).of(family)
    recipe = shapes.recipe_of(family, shape, 0.1, 0)
    shapes.describe(tmp_path, family, shape, "float32", recipe)
    return load(tmp_path, CPU, torch.float32).decoder


@pytest.mark.parametrize("model", ["turbosparse-mistral-16m", "turbosparse-mixtral-30m"])
def test_every_path_of_ours_gets_its_rows(monkeypatch, tmp_path, model):
    flags = ["--batch", "1", "3", "--context", "20", "--prompt", "32", "--profile"]
    found = run(monkeypatch, tmp_path, *flags, model=model)
    decoded = [row for row in found["rows"] if row["what"] == "decode"]
    expected = [(p, b) for b in (1, 3) for p in step.MODES] + [("dense", 1), ("dense", 3)]
    assert [(row["path"], row["batch"]) for row in decoded] == expected
    for row in decoded:
        assert row["tokens_per_second"] == pytest.approx(row["batch"] / row["ms"] * 1e3)
        assert row["roof"] > 0
        if row["path"] != "dense":
            assert 0 < row["active"] <= row["union"] < 1
    for batch in (1, 3):
        assert sum(row["chosen"] for row in decoded if row["batch"] == batch) == 1
    others = [(row["what"], row["context"]) for row in found["rows"] if row["what"] != "decode"]
    assert others == [("prefill", 32), ("first token", 8), ("first token", 2), ("host gap", 8)]
    assert not [note for note in found["notes"] if note.startswith("not measured")]
    assert sum("aten::" in note for note in found["notes"]) == len(decoded), "a profile each"
    assert "synthetic" in found["facts"]["model"]
    assert found["notes"][0].startswith("one layer's FFN"), "what the mode was chosen by"
    table = (tmp_path / "results" / "run.md").read_text()
    assert table.count("| decode |") == len(decoded)


@pytest.mark.parametrize("model", ["turbosparse-mistral-16m", "turbosparse-mixtral-30m"])
def test_rounded_predictors_are_measured_beside_the_models_own(monkeypatch, tmp_path, model):
    flags = ["--batch", "1", "3", "--context", "20", "--paths", "chosen", "float8", "dense"]
    found = run(monkeypatch, tmp_path, *flags, model=model)
    rows = [(r["path"], r["batch"], r["approximate"]) for r in found["rows"]]
    chosen = [row["path"] for row in found["rows"][:2]]
    assert rows[:2] == [(chosen[0], 1, False), (chosen[1], 3, False)]
    assert rows[2:4] == [("float8", 1, True), ("float8", 3, True)]
    assert all(0 < row["active"] <= row["union"] < 1 for row in found["rows"][:4])
    table = (tmp_path / "results" / "run.md").read_text()
    assert table.count("| approximate |") == 2
    assert not [note for note in found["notes"] if note.startswith("not measured")]


def test_predictors_that_are_not_there_cannot_be_rounded(monkeypatch, tmp_path):
    flags = ["--batch", "1", "--context", "20", "--paths", "float8", "dense"]
    found = run(monkeypatch, tmp_path, *flags, model="bamboo-16m")
    assert [row["path"] for row in found["rows"]] == ["dense"]
    assert any("not measured: float8: ModelError" in note for note in found["notes"])


BUDGET = ["--page-budget", "64", "--gate-rank", "4"]


def test_both_models_read_a_page_budget_and_all_four_are_compared(monkeypatch, tmp_path):
    """Where the budget covers the context there is one way to read it."""
    flags = ["--batch", "1", "3", "--context", "50", "200", "--paths", "chosen", "dense", *BUDGET]
    asked = ["--attention", "full", "bound", "gate"]
    found = run(monkeypatch, tmp_path, *flags, *asked, model="bamboo-16m")
    ways = {50: ["full"], 200: ["full", "bound", "gate"]}
    for context, expected in ways.items():
        rows = [row for row in found["rows"] if row["context"] == context]
        got = [(row["path"] == "dense", row["batch"], row["attention"]) for row in rows]
        assert got == [(d, b, way) for d in (False, True) for b in (1, 3) for way in expected]
        assert all(row["chosen"] == (row["path"] != "dense") for row in rows)
    table = found["notes"][-1].splitlines()
    assert [line.split()[:3] for line in table[2:]] == [
        ["1", "50", "full"],
        ["3", "50", "full"],
        *([batch, "200", way] for batch in "13" for way in ("bound", "gate")),
    ]
    assert all(line.count("x") == 3 for line in table[4:])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--context", "513"], "--context: 513 is not 2 to the 512 of turbosparse-mistral-16m"),
        (["--crossover", "600"], "--crossover: 600 is not 2 to the 512"),
        (["--crossover", "64", *BUDGET], "--crossover: nothing is beyond --page-budget 64"),
        (["--page-budget", "63"], "--page-budget: 63 is less than 64"),
        (["--gate-rank", "0"], "--gate-rank: 0 is not positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(monkeypatch, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, *flags)
    assert message in capsys.readouterr().err


def test_where_a_budget_starts_to_win_is_looked_for(monkeypatch, tmp_path):
    flags = ["--batch", "1", "2", "8", "--context", "16", "--paths", "dense", *BUDGET]
    asked = ["--attention", "bound", "gate", "--crossover", "200", "64"]
    found = run(monkeypatch, tmp_path, *flags, *asked)
    rows = [row for row in found["rows"] if row["what"] == "crossover"]
    places = [(row["batch"], row["context"], row["attention"]) for row in rows]
    assert places == [
        (batch, context, each)
        for way in ("bound", "gate")
        for batch in (1, 8)
        for context in (64, 200)
        for each in ("full", "kept", way)
    ]
    for row in rows:  # on a CPU serving chooses as soon as there is anything to choose
        taken = row["attention"] == "kept" if row["context"] == 64 else row["attention"] in asked
        assert row["chosen"] == taken
    notes = [note for note in found["notes"] if "a budget is faster" in note]
    assert [note.splitlines()[-1].split(":")[0] for note in notes] == ["batch 1", "batch 8"] * 2
    assert all("serving takes it beyond 64" in note for note in notes)


def test_the_verdict_is_of_what_serving_takes():
    def point(context: int, full: float, kept: float, budget: float) -> crossover.Point:
        return crossover.Point(1, context, full, kept, budget, beyond=300)

    points = [point(100, 1.0, 1.01, 1.5), point(300, 1.2, 1.21, 1.1), point(400, 1.6, 1.62, 1.5)]
    assert [round(p.speed, 2) for p in points] == [0.99, 0.99, 1.07]
    said = crossover.verdict(points)
    assert "faster from 300 on; serving takes it beyond 300" in said
    assert said.endswith("at least 0.990 of full attention's speed, at 100")
    slow = crossover.verdict([*points, point(500, 2.0, 2.0, 2.1)])
    assert "faster at none of them" in slow
    assert slow.endswith("0.952 of full attention's speed, at 500: BELOW 0.98")


def test_each_sparsity_is_held_against_neither():
    def row(path: str, ms: float, attention: str = "full", *, chosen: bool = False) -> Row:
        active = None if path == "dense" else 0.1
        return Row("decode", path, 8, 400, ms, 8e3 / ms, active=active, chosen=chosen,
                   attention=attention)  # fmt: skip

    rows = [
        row("union", 5.0, chosen=True),
        row("masked", 4.0),
        row("union", 2.5, "bound", chosen=True),
    ]
    assert ratios.table(rows, "dense") is None, "nothing to compare with"
    rows += [row("dense", 10.0), row("dense", 8.0, "bound")]
    line = ratios.table(rows, "dense").splitlines()[-1].split()
    assert line == [
        "8",
        "400",
        "bound",
        "10.000",
        "800",
        "2.00x",
        "1.25x",
        "4.00x",
        "2.500",
        "3200",
    ]
    rows.append(replace(row("float8", 1.0), approximate=True))
    rows = [row for row in rows if row.path == "dense" or row.attention == "full"]
    line = ratios.table(rows, "dense").splitlines()[-1].split()
    assert line[-2:] == ["2.00x", "1.25x"], "both were not measured"


def test_long_contexts_are_for_few_requests(monkeypatch, tmp_path):
    monkeypatch.setattr(step, "LONG", 20)
    flags = ["--batch", "1", "2", "--context", "16", "24", "--paths", "dense"]
    found = run(monkeypatch, tmp_path, *flags)
    points = [(row["context"], row["batch"]) for row in found["rows"]]
    assert points == [(16, 1), (16, 2), (24, 1)]


def test_what_there_is_no_time_for_is_said(monkeypatch, tmp_path):
    flags = ["--batch", "1", "--context", "16", "--paths", "union", "dense", "--seconds", "0"]
    found = run(monkeypatch, tmp_path, *flags)
    assert found["rows"] == []
    missing = [note for note in found["notes"] if note.startswith("not measured")]
    assert [note.split(": ", 1)[1] for note in missing] == [
        "sparse, batch 1, context 16: 0 s are over",
        "dense, batch 1, context 16: 0 s are over",
    ]


def test_a_path_that_fails_does_not_end_the_run(monkeypatch, tmp_path):
    """Rows that were measured before are on disk already; those after it still come."""

    class Fails:
        def __init__(self, *_):
            pass

        def generate(self, batch, context):
            raise torch.OutOfMemoryError("tried to allocate 4 PiB\nand more")

        def continuous(self, batch, context):
            return 0.5

    monkeypatch.setattr(step, "Rival", Fails)
    flags = ["--batch", "1", "--context", "16", "--paths", "dense", "--rivals"]
    found = run(monkeypatch, tmp_path, *flags)
    assert [(row["path"], row["ms"]) for row in found["rows"]][1:] == [("continuous", 500.0)]
    (note,) = found["notes"]
    assert "generate, batch 1, context 16: OutOfMemoryError: tried to allocate 4 PiB" in note
    assert "and more" not in note


def test_without_the_engine_the_steps_are_measured(monkeypatch, tmp_path):
    """The engine needs packages that bare steps do not."""
    monkeypatch.setattr(step, "import_module", lambda name: __import__(f"{name}_is_missing"))
    flags = ["--batch", "1", "--context", "16", "--paths", "engine", "union"]
    found = run(monkeypatch, tmp_path, *flags)
    assert [(row["what"], row["path"]) for row in found["rows"]] == [("decode", "union")]
    assert any("engine: ModuleNotFoundError" in note for note in found["notes"])


def test_a_step_reads_what_a_hand_counts(tmp_path):
    decoder = drawn(tmp_path, "turbosparse-mistral")
    measured = decode.Step(decoder, 3, 20)
    seen = measured.look()
    layer = decoder.layers[0]
    weights = [layer.attention.qkv.weight, layer.attention.out.weight, decoder.lm_head.weight]
    weights += [layer.attention_norm.weight, layer.ffn_norm.weight, decoder.norm.weight]
    other = 4 * sum(weight.numel() for weight in weights)
    predictor = 4 * round(64 * 1260 / 4096) * (64 + 128)
    neuron = 4 * 3 * 64
    kv = 3 * 20 * 4 * 2 * 2 * 16  # requests, tokens, bytes, K and V, heads, head dim
    assert measured.bytes(seen, skips=False) == other + predictor + 128 * neuron + kv
    union = round(seen.union * 128)
    assert measured.bytes(seen, skips=True) == other + predictor + union * neuron + kv


def test_of_a_mixture_the_chosen_experts_are_read(tmp_path):
    decoder = drawn(tmp_path, "turbosparse-mixtral")
    one, many = decode.Step(decoder, 1, 20).look(), decode.Step(decoder, 64, 20).look()
    assert (one.tokens, many.tokens) == (2, 128)
    assert many.neuron_bytes == 4 * one.neuron_bytes == 8 * 128 * 4 * 3 * 64
    assert many.predictor_bytes == 4 * one.predictor_bytes
    assert one.union == one.active, "one token an expert"
    dense = decode.Step(drawn(tmp_path / "d", "mixtral"), 1, 20).look()
    assert (dense.neuron_bytes, dense.predictor_bytes) == (one.neuron_bytes, 0)


def test_a_budget_reads_summaries_and_its_own_pages(tmp_path):
    measured = decode.Step(drawn(tmp_path, "mistral"), 3, 160, summaries=True)
    seen, token = measured.look(), 4 * 2 * 2 * 16
    full, budget = (measured.bytes(seen, skips=False, budget=n) for n in (None, 64))
    assert full - budget == 3 * (160 - 64 - 10) * token, "a summary is as large as a token"
    assert measured.bytes(seen, skips=False, budget=160) == full
    with decode.random_gates(measured.decoder, 4):
        assert measured.bytes(seen, skips=False, budget=64) - budget == 4 * (4 + 2) * 4 * 2 * 16


def test_gates_that_choose_are_read_before_the_neurons_that_they_choose(tmp_path):
    decoder = drawn(tmp_path, "bamboo")
    measured = decode.Step(decoder, 3, 20)
    seen, row = measured.look(), 4 * 64
    assert (seen.predictor_bytes, seen.neuron_bytes) == (128 * row, 128 * 2 * row)
    assert 0 < seen.active < seen.union < 1
    skipped = measured.bytes(seen, skips=False) - measured.bytes(seen, skips=True)
    assert skipped == pytest.approx((1 - seen.union) * 128 * 2 * row)


def test_a_budget_of_every_page_is_full_attention(tmp_path):
    """And a smaller one is not, nor what gates choose what the bound does."""
    measured = decode.Step(drawn(tmp_path, "turbosparse-mistral"), 3, 400, summaries=True)
    full = measured.runner(FfnMode.UNION)()
    torch.testing.assert_close(measured.runner(FfnMode.UNION, 400)(), full, atol=1e-4, rtol=0)
    bound = measured.runner(FfnMode.UNION, 64)()
    assert (bound - full).abs().max() > 1e-3
    with decode.random_gates(measured.decoder, 4):
        assert (measured.runner(FfnMode.UNION, 64)() - bound).abs().max() > 1e-3
    assert torch.equal(measured.runner(FfnMode.UNION, 64)(), bound), "the gates are gone"


def test_modes_run_the_same_step(tmp_path):
    measured = decode.Step(drawn(tmp_path, "turbosparse-mistral"), 3, 20)
    token, union, dense = (measured.runner(mode)() for mode in FfnMode)
    torch.testing.assert_close(token, dense, atol=1e-4, rtol=0)
    torch.testing.assert_close(union, dense, atol=1e-4, rtol=0)


def test_the_reading_kernel_reads_everything():
    pytest.importorskip("triton")
    import roof_kernel

    rows = torch.arange(3 * 2048, dtype=torch.float32).view(3, 2048) % 7
    out = torch.empty(3)
    roof_kernel.read_rows(rows, out)
    torch.testing.assert_close(out, rows.sum(1))


def test_a_cpu_has_a_roof():
    assert 1e8 < roof.bandwidth(CPU) < 1e13


def test_the_picture_shows_the_mode_that_serving_takes(tmp_path):
    pytest.importorskip("matplotlib")

    def row(path, batch, speed, *, chosen=False, context=512, what="decode"):
        return {
            "what": what,
            "path": path,
            "batch": batch,
            "context": context,
            "tokens_per_second": speed,
            "chosen": chosen,
        }

    rows = [
        row("token", 1, 500.0, chosen=True),
        row("union", 1, 480.0),
        row("masked", 8, 2000.0, chosen=True),
        row("dense", 1, 224.0),
        row("dense", 1, 999.0, context=4096),
        row("engine", 1, 999.0, what="host gap"),
        row("dense", 1, 999.0) | {"attention": "bound"},
    ]
    assert plot.lines(rows, 512) == {"sparse": {1: 500.0, 8: 2000.0}, "dense": {1: 224.0}}
    plot.draw(rows, "turbosparse-mistral-7b", "a title", 512, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
