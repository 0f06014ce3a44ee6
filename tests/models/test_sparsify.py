"""A tiny dense model made sparse, from the command line to the loader that serves it."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation
from turbosparse.models.load import load
from turbosparse.models.tools import recovery, surgery, watching
from turbosparse.models.tools.shapes import byte_tokenizer
from turbosparse.server.cli import main

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "eos_token_id": 319,
}
FLAGS = {
    "tokens": 24 * 256,
    "batch-tokens": 256,
    "sequence-length": 32,
    "micro-batch": 4,
    "rank": 8,
    "learning-rate": 1e-2,
    "final-learning-rate": 1e-3,
    "warmup-steps": 2,
    "log-steps": 1,
    "save-steps": 5,
    "seed": 1,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with two dense models and some text."""
    folder = tmp_path_factory.mktemp("sparsify")
    write_dense(folder / "llama", transformers.LlamaConfig(**SIZES))
    write_dense(folder / "mistral", transformers.MistralConfig(**SIZES, sliding_window=9))
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    (folder / "unseen.txt").write_text("the lazy fox jumps over the brown dog\n" * 40)
    return folder


def write_dense(out: Path, config: transformers.PretrainedConfig) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(out)
    byte_tokenizer(320).save(str(out / "tokenizer.json"))
    (out / "generation_config.json").write_text('{"eos_token_id": [319, 7]}')


def sparsify(home: Path, out: Path, model: str = "mistral", *more: str, **changes: object) -> int:
    flags = FLAGS | {name.replace("_", "-"): value for name, value in changes.items()}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    data = ["--data", str(home / "text.txt"), "--holdout", str(home / "unseen.txt")]
    with torch.enable_grad():
        return main(["sparsify", str(home / model), "--out", str(out), *data, *words, *more])


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


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
    assert 0 < record["mean_density"] < 0.45 < measured["surgery"]["kept"][0]
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
    assert (
        json.loads((out / "sparsify.json").read_text())["resumed_from"] == 12
        if end == "signal"
        else 5
    )
    want, got = tensors_of(trained), tensors_of(out)
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
