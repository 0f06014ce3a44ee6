"""`train-gates` from a text to a folder that is served, on a model of three layers."""

import json
import os
import re
import shutil
from dataclasses import replace

import published
import pytest
import torch
from scripted import run
from test_runner import PROMPT, greedy, make
from tokenizers import Tokenizer, models, pre_tokenizers

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.request import PageChoice
from turbosparse.engine.runner import build_runner
from turbosparse.models.config import ModelError
from turbosparse.models.load import load
from turbosparse.models.sparsity.gates import attention_of
from turbosparse.models.tools import train_gates
from turbosparse.models.tools.page_mass import divergence, look, sample_places
from turbosparse.models.tools.train_gates import Recipe
from turbosparse.server.banner import banner
from turbosparse.server.cli import main

CPU = torch.device("cpu")
WORDS = 97
RECIPE = Recipe(rank=8, page_size=4, window=64, tokens=3000, places=24, rate=1e-2)
FLAGS = [
    *("--rank", "8", "--page-size", "4", "--window", "64", "--tokens", "3000"),
    *("--places", "24", "--rate", "0.01"),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As for torch: two that share a core would wait for each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {0})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a tokenizer, and text for it."""
    folder = tmp_path_factory.mktemp("gates")
    directory = published.make(folder / "model", "bamboo")
    vocab = {f"w{i}": i for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = torch.randint(0, WORDS, (4000,), generator=torch.Generator().manual_seed(1)).tolist()
    lines = [" ".join(f"w{i}" for i in ids[n : n + 20]) for n in range(0, len(ids), 20)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    arguments = ["train-gates", str(folder / "model"), "--data", str(folder / "text.txt")]
    assert main([*arguments, "--out", str(folder / "gates"), "--budgets", "16", "32", *FLAGS]) == 0
    return folder / "gates"


def test_the_artifact_says_what_was_measured(trained):
    assert {path.name for path in trained.iterdir()} == {"config.json", "model.safetensors"}
    assert not trained.with_name("gates.state").exists()
    config = json.loads((trained / "config.json").read_text())
    quality = config["quality"]
    assert (config["page_size"], config["rank"], config["data"]) == (4, 8, "text.txt")
    gates, bounds, best = quality["gate"], quality["bound"], quality["best"]
    assert gates.keys() == bounds.keys() == best.keys() == {"16", "32"}
    for budget, reached in best.items():
        gate, bound = gates[budget], bounds[budget]
        assert len(gate["recall_by_layer"]) == len(reached["recall_by_layer"]) == 3
        assert bound["recall"] < gate["recall"] <= reached["recall"] + 1e-6
        assert 0 < gate["nats"] < bound["nats"]
        assert 0 < gate["same_best"] <= 1
    assert gates["32"]["recall"] > gates["16"]["recall"]
    assert "at 16 tokens" in config["measured"]


def test_a_trained_gate_estimates_better_than_the_bound_that_it_began_as(folder, trained):
    decoder = load(folder / "model", CPU, torch.float32).decoder
    ids = torch.randint(0, WORDS, (64,), generator=torch.Generator().manual_seed(8))
    places = sample_places(32, 64, 4, (9,))
    begun = train_gates.Run(decoder, RECIPE, train_gates.Saved(folder / "unused", {}))
    attached = make(folder / "model", page_budget=16, attention_gates=str(trained)).runner.decoder
    for layer, first, seen in zip(attached.layers, begun.gates, look(decoder, ids), strict=True):
        bound = divergence(seen, None, places, 4)
        assert divergence(seen, first.projections, places, 4) == pytest.approx(bound.item())
        assert divergence(seen, attention_of(layer).gate.projections, places, 4) < 0.98 * bound


def test_served_and_chosen_by_request(folder, trained):
    core = make(folder / "model", page_budget=16, attention_gates=str(trained))
    said = {}
    for name, pages in (("bound", PageChoice(16)), ("gate", PageChoice(16, gated=True))):
        core.add(greedy(name, PROMPT, 50, pages=pages))
        said[name] = run(core).tokens[name]
    assert said["bound"] != said["gate"]
    for name in said:
        core.add(greedy(f"{name} again", PROMPT, 50, pages=PageChoice(16, gated=name == "gate")))
    got = run(core).tokens
    assert {name: got[f"{name} again"] for name in said} == said, "in one batch"


def test_a_run_that_is_killed_goes_on_and_comes_to_the_same(folder, trained, monkeypatch):
    step, calls = train_gates.Run._step, []

    def killed(self, ids, number, total):
        calls.append(number)
        if number == 25 and calls.count(25) == 1:
            raise KeyboardInterrupt
        return step(self, ids, number, total)

    monkeypatch.setattr(train_gates.Run, "_step", killed)
    arguments = (folder / "model", folder / "resumed", folder / "text.txt", RECIPE)
    with pytest.raises(KeyboardInterrupt):
        train_gates.train_gates(*arguments, budgets=[16])
    assert not (folder / "resumed").exists()
    other = (*arguments[:3], Recipe(rank=9, page_size=4, window=64, tokens=3000))
    with pytest.raises(ModelError, match="was begun with rank=8, now it is 9"):
        train_gates.train_gates(*other)
    train_gates.train_gates(*arguments, budgets=[16])
    assert calls == [*range(26), *range(20, 42)], "from the last save on"
    weights = [path / "model.safetensors" for path in (trained, folder / "resumed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def copied(trained, folder, **changes):
    config = json.loads((trained / "config.json").read_text()) | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    return str(folder)


def test_a_model_carries_its_own_and_others_may_be_given(folder, trained, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    with pytest.raises(ModelError, match=r"or a model that carries its own: .* attention_gates"):
        make(model, attention="gate", page_budget=16)
    arguments = ["train-gates", str(model), "--data", str(folder / "text.txt"), *FLAGS]
    arguments += ["--tokens", "400", "--out", str(model / "attention_gates")]
    assert main(arguments) == 0
    said = f"turbosparse serve {model} --attention gate --page-size 4\n"
    assert said in capsys.readouterr().out
    config = EngineConfig(str(model), device="cpu", page_size=4, num_pages=9, num_threads=1)
    assert build_runner(config)[1].attention is None, "nothing was asked for"
    info = build_runner(replace(config, attention="gate", page_budget=16))[1]
    assert info.attention.gates_from == "model"
    assert info.attention.modes == ["full", "bound", "gate"]
    assert "the context by gate of its own; on " in info.approximation
    shown = banner("m", info, "http://x")
    assert f"gates  the model's own; {info.attention.gates}\n" in shown
    given = build_runner(replace(config, page_budget=16, attention_gates=str(trained)))[1]
    assert given.attention.gates_from == str(trained)
    assert given.attention.gates != info.attention.gates


def test_its_own_for_pages_of_another_size_are_left_out_unless_asked_for(
    folder, trained, tmp_path, caplog
):
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    shutil.copytree(trained, model / "attention_gates")
    config = EngineConfig(str(model), device="cpu", page_size=8, num_pages=9, num_threads=1)
    left_out = "attention_gates is left out: these gates were trained for pages of 4 tokens"
    for asked in ({"attention": "bound"}, {"page_budget": 32}):
        caplog.clear()
        info = build_runner(replace(config, **asked))[1]
        assert (info.attention.modes, info.attention.gates_from) == (["full", "bound"], None)
        assert left_out in caplog.text
    caplog.clear()
    assert build_runner(config)[1].attention is None
    fitting = build_runner(replace(config, page_size=4, attention="bound"))[1]
    assert fitting.attention.modes == ["full", "bound", "gate"]
    assert caplog.text.count("left out") == 0
    for asked in ({"attention": "gate"}, {"attention": "bound", "attention_gates": str(trained)}):
        with pytest.raises(ModelError, match="pages of 4 tokens, the K/V pages here have 8"):
            build_runner(replace(config, **asked))


def test_gates_that_do_not_fit_are_refused(folder, trained, tmp_path):
    def refused(message, gates, model=folder / "model"):
        with pytest.raises(ModelError, match=message):
            make(model, attention="gate", attention_gates=str(gates))

    refused(
        "trained for pages of 16 tokens, the K/V pages here have 4",
        copied(trained, tmp_path / "pages", page_size=16),
    )
    refused("kind is not attention-gates", copied(trained, tmp_path / "kind", kind="low_rank"))
    refused("has shape .* would have", copied(trained, tmp_path / "rank", rank=5))
    tensors = published.make_tensors(published.config_of("bamboo"), predictor=False, seed=3)
    twin = published.save(tmp_path / "twin", published.config_of("bamboo"), tensors)
    refused("the same shape, but other weights", trained, twin)
    longer = published.make(tmp_path / "longer", "bamboo", num_hidden_layers=4)
    refused("num_layers=3, here 4", trained, longer)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere.txt"], "--data: there is no file nowhere.txt"),
        (["--rank", "0"], "--rank: 0 is not 1 to 16"),
        (["--window", "300"], "--window: 300 is not 32 to the model's 256"),
        (["--window", "20"], "--window: 20 is not 32"),
        (["--page-size", "24"], "--page-size=24 is not one of 4, 8, 16"),
        (["--budgets", "8"], "--budgets: 8 is not 16 to the window 64"),
        (["--tokens", "60"], "--data: .* has one window of 64 tokens"),
        (["--holdout", "nowhere.txt"], "--holdout: there is no file"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(folder, tmp_path, capsys, flags, message):
    arguments = ["train-gates", str(folder / "model"), "--data", str(folder / "text.txt")]
    assert main([*arguments, "--out", str(tmp_path / "out"), *FLAGS, *flags]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(folder, trained):
    with pytest.raises(ModelError, match="is not empty"):
        train_gates.train_gates(folder / "model", trained, folder / "text.txt", RECIPE)
