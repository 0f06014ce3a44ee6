"""Modes are timed where they run, once: what is on disk is taken while nothing has changed."""

import json

import published
import pytest
import torch

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.graphs import SIZES, decode_sizes
from turbosparse.engine.runner import build_runner
from turbosparse.models import calibration, calibration_cache
from turbosparse.models.batch import FfnMode
from turbosparse.models.load import load
from turbosparse.models.sequence import observe, random_ids
from turbosparse.models.sparsity.policy import FfnPolicy
from turbosparse.server.cli import main

CPU = torch.device("cpu")
TOKEN, UNION, DENSE = FfnMode
FASTEST = {1: TOKEN, 4: TOKEN, 16: UNION}  # larger steps: DENSE


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration_cache, "FOLDER", tmp_path / "calibrations")
    return tmp_path / "calibrations"


@pytest.fixture
def decoder(tmp_path):
    return load(published.make(tmp_path / "m", "turbosparse-mistral"), CPU, torch.float32).decoder


@pytest.fixture
def asked(monkeypatch):
    """(FFNs, tokens, mode) of every run, with a clock of our own."""
    asked = []

    def clock(inputs, batch, *, graphs):
        size, mode = len(batch.token_ids), batch.ffn_mode
        for _, residual, _ in inputs:
            assert len(residual) == size

        def seconds():
            asked.append(([ffn for ffn, _, _ in inputs], size, mode))
            return 1e-6 if mode is FASTEST.get(size, DENSE) else 3e-6

        return seconds

    monkeypatch.setattr(calibration, "_clock", clock)
    return asked


def steps(asked):
    return list(dict.fromkeys((size, mode) for _, size, mode in asked))


def test_every_mode_is_measured_up_to_the_largest_step(decoder, asked):
    policy = calibration.calibrate(decoder, 300)  # more than the 256 positions of a request
    expected = [(size, mode) for size in (1, 4, 16, 64, 256, 300) for mode in FfnMode]
    assert steps(asked) == expected
    assert [(size, mode) for _, size, mode in asked[:6]] == 2 * expected[:3], "they take turns"
    assert policy.table() == {4: "token", 16: "union", 300: "dense"}


def test_decode_sizes_are_all_measured_and_larger_steps_coarsely(decoder, asked):
    calibration.calibrate(decoder, 512, decode_sizes(13))
    sizes = [size for size, mode in steps(asked) if mode is TOKEN]
    assert sizes == [*range(1, 9), 10, 12, 14, 16, 64, 256, 512]


@pytest.mark.parametrize("max_tokens", [1, 3, 64, 65, 256, 1000])
def test_padded_sizes_are_those_of_the_graphs(max_tokens):
    sizes = decode_sizes(max_tokens)
    assert sizes == SIZES[: len(sizes)]
    assert sizes[-1] >= min(max_tokens, SIZES[-1])
    assert len(sizes) == 1 or sizes[-2] < max_tokens


def test_on_a_cpu_the_layer_of_mean_density_is_timed(decoder, asked):
    for layer, density in zip(decoder.layers, (0.9, 0.0, 0.5), strict=True):
        neurons = layer.ffn.predictor.fc2.weight
        neurons.zero_()
        neurons[: int(density * len(neurons))] = 1  # on wherever any hidden unit is
    calibration.calibrate(decoder, 4)
    assert observe(decoder, random_ids(decoder, 64)).active.argsort().tolist() == [1, 2, 0]
    assert all(ffns == [decoder.layers[2].ffn] for ffns, _, _ in asked)


def test_on_a_gpu_layers_take_turns_so_that_no_cache_holds_them():
    for num_layers, expected in ((2, [0, 1]), (32, [*range(0, 32, 4)]), (12, [*range(8)])):
        assert calibration._layers(torch.zeros(num_layers), torch.device("cuda")) == expected


def test_a_dense_model_is_not_a_question(tmp_path, asked):
    changes = {"model_type": "mistral", "hidden_act": "silu"}
    directory = published.make(tmp_path, "bamboo", **changes)
    decoder = load(directory, CPU, torch.float32).decoder
    assert calibration.calibrate(decoder, 64) == FfnPolicy.always(DENSE)
    assert not asked


def test_real_clocks_run(tmp_path):
    directory = published.make(tmp_path, "turbosparse-mixtral")
    policy = calibration.calibrate(load(directory, CPU, torch.float32).decoder, 8)
    assert policy.sizes[-1] == 8
    assert all(0 < s < 1 for times in policy.seconds.values() for s in times.values())


def test_a_second_start_takes_what_the_first_has_measured(decoder, asked, folder):
    first = calibration.calibrate(decoder, 16)
    num_asked = len(asked)
    second = calibration.calibrate(decoder, 16)
    assert len(asked) == num_asked
    assert (second, second.seconds) == (first, first.seconds)
    assert calibration.calibrate(decoder, 16, anew=True) == first
    assert len(asked) == 2 * num_asked
    assert [p.suffix for p in folder.iterdir()] == [".json"], "no temporary file is left"


def test_fewer_modes_are_taken_too(decoder, asked, monkeypatch):
    calibration.calibrate(decoder, 16)
    asked.clear()
    monkeypatch.setattr(type(decoder.ops), "modes", (UNION, DENSE))  # as on a GPU
    first = calibration.calibrate(decoder, 16)
    assert {mode for _, _, mode in asked} == {UNION, DENSE}, "other modes, other times"
    asked.clear()
    second = calibration.calibrate(decoder, 16)
    assert not asked
    assert (second, second.seconds) == (first, first.seconds)


@pytest.mark.gpu
def test_a_second_start_on_a_gpu_measures_nothing(tmp_path, asked):
    directory = published.make(tmp_path, "turbosparse-mistral")
    device = torch.device("cuda")
    for expected in (True, False):
        asked.clear()
        policy = calibration.calibrate(load(directory, device, torch.bfloat16).decoder, 16)
        assert bool(asked) is expected
        assert set(policy.seconds[1]) == {UNION, DENSE}


def test_whatever_changes_the_times_is_measured_anew(decoder, asked, tmp_path, monkeypatch):
    def num_asked(decoder=decoder, max_tokens=16, **options) -> int:
        asked.clear()
        calibration.calibrate(decoder, max_tokens, **options)
        return len(asked)

    assert num_asked() > 0
    assert num_asked() == 0
    assert num_asked(max_tokens=17) > 0
    assert num_asked(graphs=True) > 0
    other = published.make(tmp_path / "other", "turbosparse-mistral", intermediate_size=104)
    assert num_asked(load(other, CPU, torch.float32).decoder) > 0
    bf16 = load(tmp_path / "m", CPU, torch.bfloat16).decoder
    assert num_asked(bf16) > 0
    monkeypatch.setattr(calibration_cache, "_sources", lambda: "another kernel")
    assert num_asked() > 0
    decoder.layers[0].ffn.predictor.fc2.weight.fill_(1.0)  # a third of all neurons, always
    assert num_asked() > 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: "",
        lambda stored: json.dumps(stored)[:-30],
        lambda stored: "[]",
        lambda stored: json.dumps({"key": stored["key"]}),
        lambda stored: json.dumps(stored | {"key": {}}),
        lambda stored: json.dumps(stored | {"seconds": {"1": stored["seconds"]["1"]}}),
        lambda stored: json.dumps(stored).replace('"union": ', '"onion": '),
        lambda stored: json.dumps(stored).replace('"union": 3e-06', '"union": -1.0'),
        lambda stored: json.dumps(stored).replace('"union": 3e-06', '"union": NaN'),
        lambda stored: json.dumps(stored).replace('"union": 3e-06', '"union": "fast"'),
        lambda stored: json.dumps(stored).replace('"union": 3e-06, ', ""),
    ],
)
def test_a_damaged_file_is_measured_anew(decoder, asked, folder, damage, caplog):
    calibration.calibrate(decoder, 16)
    (path,) = folder.iterdir()
    whole = path.read_text()
    damaged = damage(json.loads(whole))
    assert damaged != json.dumps(json.loads(whole)), "the damage was done"
    path.write_text(damaged)
    asked.clear()
    calibration.calibrate(decoder, 16)
    assert asked
    assert "anew" in caplog.text
    assert path.read_text() == whole, "and repaired"


def test_without_a_place_to_keep_it_nothing_is_kept(decoder, asked, folder, caplog):
    folder.write_text("a file where the folder should be")
    assert calibration.calibrate(decoder, 4).sizes == (4,)
    assert "measured at every start" in caplog.text


def test_the_engine_says_what_it_was_chosen_by(tmp_path, asked):
    directory = published.make(tmp_path, "turbosparse-mistral")
    config = EngineConfig(model=str(directory), device="cpu", num_pages=20, num_threads=1)
    info = build_runner(config)[1]
    assert [(t.num_tokens, t.chosen) for t in info.ffn_timings][:3] == [
        (1, "token"),
        (4, "token"),
        (16, "union"),
    ]
    assert info.ffn_timings[0].microseconds == pytest.approx({"token": 1, "union": 3, "dense": 3})


def test_the_command_measures_anew_and_prints_the_table(tmp_path, asked, capsys):
    directory = published.make(tmp_path, "turbosparse-mistral")
    for _ in range(2):
        asked.clear()
        assert main(["calibrate", str(directory), "--device", "cpu", "--threads", "1"]) == 0
        assert asked
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["16", "3.0", "1.0", "3.0", "union"] in rows
