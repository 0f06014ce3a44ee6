"""From text to separate predictors that can be trusted: the command, end to end."""

import json
import logging
import re
from dataclasses import replace

import planted
import pytest
import torch
from safetensors.torch import load_file, save_file

from turbosparse.models.artifact import layer_file, neurons_of
from turbosparse.models.config import ModelError
from turbosparse.models.load import LoadedModel, load
from turbosparse.models.sequence import observe, random_ids
from turbosparse.models.sparsity.predictor import LowRankPredictor, OraclePredictor, recall
from turbosparse.models.tools import imitation, train_predictor
from turbosparse.models.tools.imitation import Recipe
from turbosparse.server import cli

RECIPE = Recipe(rank=16, epochs=6, batch=64, learning_rate=5e-3, recall=0.9)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return planted.make(tmp_path_factory.mktemp("planted") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return planted.write_text(tmp_path_factory.mktemp("text") / "words.txt")


def make(model, text, out, recipe=RECIPE, **options):
    options = {"window": 32, "num_tokens": 3000, "device": "cpu"} | options
    return train_predictor.train_predictor(model, out, text, recipe, **options)


def read(model, **options) -> LoadedModel:
    return load(model, CPU, torch.float32, backends=("reference",), **options)


@pytest.fixture(scope="module", params=["low_rank", "sketch"])
def artifact(request, model, text, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "predictors"
    make(model, text, out, replace(RECIPE, kind=request.param))
    return out


def shares(model: LoadedModel) -> tuple[float, float]:
    """Recall and share kept over all layers, on tokens that nothing was made from."""
    seen = observe(model.decoder, random_ids(model.decoder, 200))
    masks, truths = [], []
    for layer, (x, residual) in zip(model.decoder.layers, seen.ffn_inputs, strict=True):
        masks.append(layer.ffn.predictor.select(residual, x))
        oracle = OraclePredictor.of({}, neurons_of(layer.ffn), 0.0, model.decoder.ops)
        truths.append(oracle.select(residual, x))
    mask, truth = torch.cat(masks), torch.cat(truths)
    return recall(mask, truth), mask.float().mean().item()


def test_the_recall_that_was_asked_for_is_met_on_unseen_tokens(model, artifact):
    found, kept = shares(read(model, predictors=artifact))
    assert found > RECIPE.recall - 0.03, "thresholds come from a few hundred tokens"
    assert kept < 0.5, "a quarter is active; all of them would be no prediction"


def test_training_beats_no_training(model, text, tmp_path):
    """At the same recall, fewer neurons are kept."""
    kept = {}
    for epochs in (1, RECIPE.epochs):
        rate = RECIPE.learning_rate if epochs > 1 else 1e-9
        recipe = replace(RECIPE, epochs=epochs, learning_rate=rate)
        make(model, text, tmp_path / str(epochs), recipe)
        kept[epochs] = shares(read(model, predictors=tmp_path / str(epochs)))[1]
    assert kept[RECIPE.epochs] < kept[1] - 0.2


def test_the_artifact_says_what_it_is_and_what_it_costs(model, text, artifact):
    config = json.loads((artifact / "config.json").read_text())
    assert len(config["thresholds"]) == planted.LAYERS
    assert config["base"]["config"]["num_neurons"] == planted.NEURONS
    assert config["trained"]["text"] == text.name
    measured = config["measured"]
    assert measured["num_tokens"] > 50
    assert 0.8 < measured["recall"] <= 1
    assert measured["kept"] < 0.6
    assert measured["perplexity"] != measured["perplexity_exact"]
    loaded = read(model, predictors=artifact)
    assert not loaded.exact
    kind = config["type"]
    assert loaded.approximation.startswith(f"separate {kind} predictors from predictors (threshold")
    assert f"{measured['kept']:.1%} of the neurons kept" in loaded.approximation
    assert "random tokens" not in loaded.approximation, "what was measured on text says more"
    assert sorted(p.name for p in artifact.iterdir()) == [
        "config.json", "layer_0.safetensors", "layer_1.safetensors"
    ]  # fmt: skip


def test_bytes_on_disk_are_what_the_bits_say(model, text, tmp_path):
    for bits in (3, 4):
        out = tmp_path / str(bits)
        make(model, text, out, replace(RECIPE, kind="sketch", bits=bits), num_tokens=300)
        tensors = load_file(layer_file(out, 0))
        numbers = 2 * planted.NEURONS * planted.HIDDEN
        assert tensors["codes"].nbytes == numbers * bits // 8
        assert tensors["scales"].nbytes == numbers // 64 * 2


def test_a_run_that_is_killed_goes_on_where_it_was(model, text, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    short = replace(RECIPE, epochs=1)
    make(model, text, whole, short)
    made: list[int] = []
    imitate = imitation.imitate

    def killed(layer, residuals, recipe):
        if layer.index == 1 and not made.count(1):
            made.append(1)
            raise KeyboardInterrupt
        made.append(layer.index)
        return imitate(layer, residuals, recipe)

    monkeypatch.setitem(imitation.MAKERS, "low_rank", killed)
    with pytest.raises(KeyboardInterrupt):
        make(model, text, out, short)
    assert not out.exists(), "half an artifact is none"
    for changed, name in (
        (replace(short, rank=8), "rank=16, now it is 8"),
        (replace(short, recall=0.5), "recall=0.9, now it is 0.5"),
    ):
        with pytest.raises(ModelError, match=name):
            make(model, text, out, changed)
    with pytest.raises(ModelError, match=r"out\.part was begun with text="):
        make(model, planted.write_text(tmp_path / "other.txt", seed=1), out, short)
    make(model, text, out, short)
    assert made == [0, 1, 1], "the finished layer is not made again"
    assert not (tmp_path / "out.part").exists()
    for layer in range(planted.LAYERS):
        ours, theirs = (load_file(layer_file(folder, layer)) for folder in (out, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (out / "config.json").read_text() == (whole / "config.json").read_text()


def test_predictors_of_another_model_are_refused(model, artifact, tmp_path):
    wider = planted.make(tmp_path / "wider", intermediate_size=128)
    with pytest.raises(ModelError, match=r"another model: num_neurons=96, here 128"):
        read(wider, predictors=artifact)
    tuned = planted.make(tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 0.001
    save_file(tensors, tuned / "model.safetensors")
    with pytest.raises(ModelError, match=r"the same shape, but other weights"):
        read(tuned, predictors=artifact)
    assert not read(model, predictors=artifact).exact


def test_an_artifact_that_is_damaged_is_named(model, artifact, tmp_path):
    def damaged(**changes):
        folder = tmp_path / "damaged"
        folder.mkdir(exist_ok=True)
        for file in artifact.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    for changes, message in (
        ({"type": "psychic"}, "type='psychic' is none of low_rank, sketch, oracle"),
        ({"thresholds": [0.0]}, "thresholds must be 2 numbers, one a layer"),
        ({"thresholds": [0.0, "high"]}, "thresholds must be 2 numbers, one a layer"),
        ({"base": None}, "base: expected an object"),
        ({"measured": {"kept": "most"}}, "measured"),
    ):
        with pytest.raises(ModelError, match=rf"config\.json.*{re.escape(message)}"):
            read(model, predictors=damaged(**changes))
    folder = damaged()
    layer_file(folder, 1).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"layer_1\.safetensors is not a readable safetensors"):
        read(model, predictors=folder)
    layer_file(folder, 1).unlink()
    with pytest.raises(ModelError, match=r"layer_1\.safetensors: (codes|fc1\.weight) is missing"):
        read(model, predictors=folder)


def test_the_oracle_is_a_type_like_any_other(model, artifact, tmp_path):
    config = json.loads((artifact / "config.json").read_text())
    config |= {"type": "oracle", "thresholds": [0.0, 0.0], "measured": None}
    folder = tmp_path / "oracle"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    loaded = read(model, predictors=folder)
    assert shares(loaded)[0] == 1
    assert "100.0% of the exact model's" in loaded.approximation


def test_a_threshold_is_the_largest_that_keeps_enough(model):
    decoder = read(model).decoder
    layer = imitation.Layer(
        0, neurons_of(decoder.layers[0].ffn), decoder.layers[0].ffn_norm, decoder.ops
    )
    residuals = torch.randn(100, planted.HIDDEN, generator=torch.Generator().manual_seed(0))
    predictor = LowRankPredictor.of(
        {
            "fc1.weight": torch.randn(
                8, planted.HIDDEN, generator=torch.Generator().manual_seed(1)
            ),
            "fc2.weight": torch.randn(
                planted.NEURONS, 8, generator=torch.Generator().manual_seed(2)
            ),
        },
        layer.neurons,
        0.0,
        decoder.ops,
    )
    chosen = {
        target: imitation.choose_threshold(predictor, layer, residuals, target)
        for target in (0.5, 0.9, 1.0)
    }
    for target, found in chosen.items():
        assert target <= found.recall < target + 0.01
    assert chosen[0.5].threshold > chosen[0.9].threshold > chosen[1.0].threshold
    assert chosen[0.5].kept < chosen[0.9].kept < chosen[1.0].kept


def test_the_command(model, text, tmp_path, capsys):
    arguments = [
        "train-predictor", str(model), "--out", str(tmp_path / "out"), "--data", str(text),
        "--kind", "sketch", "--window", "32", "--tokens", "2000", "--recall", "0.8",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "layer 2 of 2" in said
    assert re.search(r"wrote .*out: on \d+ tokens of words\.txt: .*% of the neurons kept", said)
    assert cli.main(arguments) == 1
    assert "--out" in capsys.readouterr().err, "what is there is not overwritten"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recall", "0"], "--recall: 0 is not above 0 and at most 1"),
        (["--recall", "1.5"], "--recall: 1.5 is not above 0"),
        (["--recall", "nan"], "--recall: nan is not above 0"),
        (["--rank", "0"], "--rank: 0 is not positive"),
        (["--rank", "65"], "--rank: 65 is not 1 to hidden_size 64"),
        (["--kind", "sketch", "--bits", "2"], r"--bits: 2 is neither of (3, 4)"),
        (["--kind", "sketch", "--group", "48"], "a group of 48 does not fit"),
        (["--window", "257"], "--window: 257 is not 2 to the model's 256"),
        (["--tokens", "90"], "--data: words.txt has 3 windows of 32 tokens, 4 are needed"),
        (["--data", "missing.txt"], "--data: there is no file missing.txt"),
        (["--data", "empty.txt"], "--data: empty.txt has 0 tokens"),
        (["--data", "latin1.txt"], "--data: latin1.txt, line 2, is not UTF-8"),
        (["--holdout", "empty.txt"], "--holdout: empty.txt has 0 tokens"),
        (["--rank", "1", "--epochs", "1", "--recall", "1"], "of the neurons must be kept"),
        (["--out", "words.txt"], "--out: words.txt is not a folder"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(
    model, text, tmp_path, monkeypatch, capsys, flags, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text(text.read_text())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes(b"w1 w2\nw\xe9\n")
    common = ["train-predictor", str(model), "--window", "32", "--data", "words.txt", "--out", "o"]
    assert cli.main([*common, *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("turbosparse-mistral", {}, "has predictors of its own"),
        ("sakana", {"model_type": "llama", "hidden_act": "silu"}, "need a dense ReLU model"),
    ],
)
def test_a_model_that_cannot_have_any_is_refused(text, tmp_path, name, changes, message):
    other = planted.make(tmp_path / "model", name, **changes)
    with pytest.raises(ModelError, match=message):
        make(other, text, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing_half_written(model, text, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("turbosparse.models.tools.layer_parts.save_file", full)
    with pytest.raises(
        ModelError, match=r"--out: .*layer_0\.safetensors cannot be written: .*space"
    ):
        make(model, text, tmp_path / "out", replace(RECIPE, kind="sketch"))
    monkeypatch.undo()
    make(model, text, tmp_path / "out", replace(RECIPE, kind="sketch"))
    assert read(model, predictors=tmp_path / "out").predictors.kind == "sketch"


def test_more_tokens_than_memory_holds_are_refused(model, text, tmp_path, monkeypatch):
    monkeypatch.setattr("turbosparse.models.tools.residuals.SPARE", 1e-9)
    with pytest.raises(ModelError, match=r"--tokens: .* GiB of memory are needed"):
        make(model, text, tmp_path / "out")
