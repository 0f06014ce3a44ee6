"""A tiny dense model made sparse, from the command line to the loader that serves it."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from dense_models import command, make_home
from safetensors.torch import load_file
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation
from turbosparse.models.load import load
from turbosparse.models.tools import recovery, sparsification, surgery, watching
from turbosparse.server.cli import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return make_home(tmp_path_factory.mktemp("sparsify"))


def sparsify(home: Path, out: Path, model: str = "mistral", *more: str, **changes: object) -> int:
    torch.set_num_threads(1)  # the CPU kernels of a test before may have set OpenMP's for torch too
    with torch.enable_grad():
        return main(command(home, out, model, *more, **changes))


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    """Bit for bit."""
    want, got = tensors_of(one), tensors_of(other)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def trained_module(home: Path, out: Path) -> torch.nn.Module:
    """The module that was trained, with what was written put back into its places."""
    model = surgery.load_dense(home / "mistral")
    surgery.make_sparse(model, Activation.DRELU, 8)
    names = {}
    for name in model.state_dict():
        published = name.replace("mlp.norm", "post_attention_layernorm")
        names[published.replace("mlp.mlp", "mlp")] = name
    model.load_state_dict({names[name]: tensor for name, tensor in tensors_of(out).items()})
    surgery.enter(model, surgery.Phase(masked=True))
    return model.eval()


@pytest.fixture(scope="module")
def trained(home) -> Path:
    assert sparsify(home, home / "trained") == 0
    return home / "trained"


def clear_ids(model: torch.nn.Module) -> list[int]:
    """Tokens whose predictor scores are all clear of zero: at a tie, rounding would decide."""
    scores: list[torch.Tensor] = []
    hooks = [
        layer.mlp.predictor.register_forward_hook(lambda _, __, score: scores.append(score))
        for layer in surgery.feed_forwards(model)
    ]
    for seed in range(100):
        scores.clear()
        ids = torch.randint(0, 320, (1, 24), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids)
        if all(score.abs().min() > 1e-5 * score.abs().max() for score in scores):
            for hook in hooks:
                hook.remove()
            return ids[0].tolist()
    raise AssertionError("no sequence is clear of ties")


def test_our_loader_computes_what_was_trained(home, trained):
    module = trained_module(home, trained)
    ids = clear_ids(module)
    want = module(input_ids=torch.tensor([ids])).logits[0]
    served = load(trained, CPU, torch.float32)
    assert served.config.predictor
    assert served.config.sliding_window == 9
    for mode in FfnMode:
        got = logits_of(served.decoder, ids, mode)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    surgery.enter(module, surgery.Phase(masked=False))
    unmasked = module(input_ids=torch.tensor([ids])).logits[0]
    assert (unmasked - want).abs().max() > 1e-3, "the mask made no difference"


def test_it_learns_and_keeps_fewer_neurons(trained):
    record = json.loads((trained / "sparsify.json").read_text())
    measured = record["measured"]
    assert measured["recovered"]["loss"] < measured["surgery"]["loss"] - 1
    assert 0 < record["mean_density"] < 0.45  # untrained predictors keep half
    assert record["density"] == measured["recovered"]["kept"]
    assert record["plan"]["rank"] == 8
    card = (trained / "README.md").read_text()
    assert f"{measured['recovered']['loss']:.4f}" in card
    assert f"{record['density'][1]:.1%}" in card


def test_what_is_written_is_the_published_layout_and_only_that(home, trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("bamboo", ["BambooForCausalLM"])
    assert config["hidden_act"] == "relu"
    for name in ("tokenizer.json", "generation_config.json"):
        assert (trained / name).read_bytes() == (home / "mistral" / name).read_bytes()
    assert tensors_of(trained)["model.layers.1.mlp.predictor.fc1.weight"].shape == (8, 32)
    left = {path.name for path in trained.with_name("trained.training").iterdir()}
    assert left == {"measured.json", "tensorboard"}, "checkpoints are gone, the curves are kept"


class Killed(Exception):
    pass


@pytest.mark.parametrize("end", ["signal", "crash"])
def test_an_interrupted_run_goes_on_to_the_same_weights(home, trained, tmp_path, end, monkeypatch):
    """By signal: at step 12, in the masked phase. By a crash after step 9, whose checkpoint is of
    step 5, before the mask; and what a killed writer left behind is passed over."""
    out, step = tmp_path / "out", {"signal": 12, "crash": 9}[end]

    def end_it(self, args, state, control, **kwargs):
        if state.global_step == step and end == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif state.global_step == step:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(watching.Report, "on_step_end", end_it)
        if end == "signal":
            assert sparsify(home, out) == 128 + signal.SIGTERM
        else:
            with pytest.raises(Killed):
                sparsify(home, out)
    assert not out.exists()
    (tmp_path / "out.training" / "checkpoint-23").mkdir()
    assert sparsify(home, out, "mistral", "--resume") == 0
    record = json.loads((out / "sparsify.json").read_text())
    assert record["resumed_from"] == {"signal": 12, "crash": 5}[end]
    assert_same(trained, out)


def test_a_relu_gate_is_written_as_relullama(home, tmp_path):
    assert sparsify(home, tmp_path / "out", "llama", activation="relu", rank=0, tokens=512) == 0
    served = load(tmp_path / "out", CPU, torch.float32)
    assert served.config.family == "llama"
    assert served.config.activation is Activation.RELU
    assert served.exact


def test_distillation_pulls_towards_the_original(home, tmp_path):
    """Only the weight differs: the same seed, the same steps. Without predictors it is Bamboo."""
    found = {}
    for weight in (0, 30):
        out = tmp_path / str(weight)
        assert sparsify(home, out, "llama", rank=0, tokens=8 * 256, distill=weight) == 0
        assert not load(out, CPU, torch.float32).config.predictor
        found[weight] = drawn_apart(home / "llama", out)
    assert found[30] < found[0] / 2


def drawn_apart(source: Path, out: Path) -> float:
    """KL(original || what was made of it) of the next token, on text."""
    ids = list(range(40, 72))
    first, second = (
        logits_of(load(folder, CPU, torch.float32).decoder, ids, FfnMode.DENSE).log_softmax(-1)
        for folder in (source, out)
    )
    return (first.exp() * (first - second)).sum(-1).mean().item()


def test_divergence_is_the_softened_kullback_leibler():
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    p, q = (x.div(4).softmax(-1) for x in (teacher, student))
    want = 16 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(recovery.divergence(student, teacher, 4.0), want)
    assert recovery.divergence(teacher, teacher, 4.0) == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_layers_costs_join_the_loss(home, checkpointing):
    """The gradients are those of the sum written out, also where layers are computed twice."""
    phase = surgery.Phase(masked=True, target=0.1, imitation=0.7, pressure=5.0)
    ids = torch.arange(20, 52)[None]

    def model_of(phase: surgery.Phase) -> torch.nn.Module:
        model = surgery.load_dense(home / "llama")
        torch.manual_seed(0)
        surgery.make_sparse(model, Activation.DRELU, 8)
        surgery.enter(model, phase)
        return model.train()

    with torch.enable_grad():
        want, got = model_of(dataclasses.replace(phase, imitation=0, pressure=0)), model_of(phase)
        costs: list[torch.Tensor] = []
        for layer in surgery.feed_forwards(want):
            layer.mlp.register_forward_hook(lambda _, __, out: costs.append(out[1]))
        loss = recovery.next_token_loss(want(input_ids=ids).logits, ids)
        written_out = [
            phase.imitation * imitation + phase.pressure * (kept - phase.target) ** 2
            for imitation, kept, _ in costs
        ]
        assert all(kept > phase.target for _, kept, _ in costs)
        (loss + sum(written_out)).backward()
        if checkpointing:
            surgery.checkpoint_activations(got)
        recovery.next_token_loss(got(input_ids=ids).logits, ids).backward()
    assert all(cost > 0 for cost in written_out)
    for (name, expected), parameter in zip(want.named_parameters(), got.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "--tokens 0 is not positive"),
        ({"batch-tokens": 250}, "--batch-tokens 250 is no multiple of rows of 32"),
        ({"sequence-length": 65}, "--sequence-length 65 is not in 2 .. 64"),
        ({"rank": -1}, "--rank -1 is negative"),
        ({"activation": "gelu"}, "--activation gelu is none of drelu, relu"),
        ({"activation": "relu"}, "--rank 8: no published layout has a predictor behind"),
        ({"final-learning-rate": 1}, "--final-learning-rate 1 is not between 0 and 0.01"),
        ({"dense-share": 1.5}, "--dense-share 1.5 is not a share"),
        ({"warmup-steps": 25}, "--warmup-steps 25 is more than all 24 steps"),
        ({"precision": "fp8"}, "--precision fp8 is none of bf16, fp32"),
        ({"micro-batch": 3}, "--batch-tokens 256 is 8 rows of 32, which --micro-batch 3 on 1"),
        ({"save-steps": 0}, "--save-steps 0 is not positive"),
        ({"data": "no.txt"}, r"no\.txt is missing"),
        ({"holdout": "no.txt"}, r"no\.txt is missing"),
        ({"holdout": "short.txt"}, r"--holdout: .*short\.txt has fewer tokens than a row of 32"),
        ({"data": "empty.txt"}, r"empty\.txt holds no text"),
        ({"out": "text.txt"}, r"--out: .*text\.txt is not a folder"),
        ({"out": "mistral"}, "--out: .*mistral is not empty"),
    ],
)
def test_what_cannot_be_is_named_before_anything_is_trained(
    home, tmp_path, capsys, monkeypatch, changes, message
):
    monkeypatch.chdir(home)
    (home / "short.txt").write_text("short")
    (home / "empty.txt").write_text("")
    given = {"out": tmp_path / "out"} | changes
    assert sparsify(home, Path(given.pop("out")), **given) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "model_type='qwen2' .*only LlamaForCausalLM and Mistral"),
        ({"architectures": ["LlamaModel"]}, "architectures=.*LlamaModel.* cannot be made sparse"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu': only 'silu' models"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary scaling 'yarn' is not supported"),
        ({"eos_token_id": None}, "neither config.json nor the tokenizer names an eos token"),
        ({"dtype": "float8"}, "dtype='float8' is none of float32, bfloat16, float16"),
        ({"vocab_size": 100}, "writes id .* but vocab_size is 100"),
        ({"intermediate_size": 40}, "mismatched keys: .*down_proj"),
        ({"num_hidden_layers": 3}, "missing keys: model.layers.2"),
    ],
)
def test_a_source_that_the_served_layout_cannot_express_is_refused(
    home, tmp_path, capsys, changes, message
):
    source = shutil.copytree(home / "llama", tmp_path / "source")
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text()) | changes
    (source / "config.json").write_text(json.dumps(config))
    assert sparsify(home, tmp_path / "out", str(source)) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_sliding_window_has_no_place_in_relullama(home, tmp_path, capsys):
    assert sparsify(home, tmp_path / "out", "mistral", activation="relu", rank=0) == 1
    assert "sliding_window=9 has no place in a LlamaForCausalLM" in capsys.readouterr().err


def test_resume_refuses_another_run_and_a_new_run_an_interrupted_one(
    home, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"
    assert sparsify(home, out, "llama", "--resume") == 1
    assert "out.training holds no run that was begun" in capsys.readouterr().err
    monkeypatch.setattr(recovery.Recovery, "compute_loss", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sparsify(home, out, "llama")
    assert sparsify(home, out, "llama") == 1
    assert "out.training holds an interrupted run: go on with --resume" in capsys.readouterr().err
    assert sparsify(home, out, "llama", "--resume", pressure=3) == 1
    assert "--resume: pressure was 100.0 and is now 3.0" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(home, tmp_path, capsys, monkeypatch):
    nan = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(recovery, "next_token_loss", lambda *_: nan * 1)
    assert sparsify(home, tmp_path / "out", "llama") == 1
    assert "step 1: the loss is nan: try a lower --learning-rate" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_half_written_and_resume_only_writes(
    home, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "out"

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sparsification, "save_torch_state_dict", full)
        assert sparsify(home, out, "llama", tokens=512) == 1
    assert re.search(r"--out: .* cannot be written: .*No space left", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["out.training"]
    with monkeypatch.context() as patched:
        patched.setattr(recovery.Recovery, "compute_loss", lambda *_, **__: 1 / 0)
        assert sparsify(home, out, "llama", "--resume", tokens=512) == 0
    assert load(out, CPU, torch.float32).config.predictor


def test_a_disk_that_fills_up_while_training_ends_the_run_which_resume_takes_up(
    home, trained, tmp_path, capsys
):
    """By a real limit: no file may be larger than 50 kB, and the optimizer's state is."""
    _, highest = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, highest))
    try:
        assert sparsify(home, tmp_path / "out") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.search(r"out\.training cannot be written: .*--resume", capsys.readouterr().err, re.S)
    assert sparsify(home, tmp_path / "out", "mistral", "--resume") == 0
    assert_same(trained, tmp_path / "out")


def test_one_process_does_not_spread_over_several_gpus_by_itself(
    home, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(transformers.TrainingArguments, "n_gpu", 8)
    assert sparsify(home, tmp_path / "out", "llama") == 1
    assert "8 GPUs are visible to one process" in capsys.readouterr().err


def test_too_little_room_is_told_before_training(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert sparsify(home, tmp_path / "out", "llama") == 1
    assert "0.0 GB free; the checkpoints on the way and the result" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_its_command(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sparsify(home, tmp_path / "out", "llama") == 1
    assert "pip install 'turbosparse[train]'" in capsys.readouterr().err
