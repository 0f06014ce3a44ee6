"""Each family computes the function that its checkpoint defines, in every mode, on every path."""

import json

import published
import pytest
import torch
import transformers
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.load import load

CPU = torch.device("cpu")
IDS = torch.randint(0, 97, (37,), generator=torch.Generator().manual_seed(1)).tolist()
PATHS = {"kernels": ("cpu", "reference"), "reference": ("reference",)}


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """To 1e-4, and to five digits of the largest logit: fp32 was seen to be off by 3e-6 of it."""
    atol = min(1e-4, 1e-5 * want.abs().max().item())
    torch.testing.assert_close(got, want.to(got.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", FfnMode)
@pytest.mark.parametrize("name", published.CONFIGS)
def test_published_checkpoints_equal_the_straight_forward(tmp_path, name, mode, path):
    directory = published.make(tmp_path, name, shards=2)
    config = published.config_of(name)
    tensors = published.make_tensors(config, predictor=name in published.HAS_PREDICTOR)
    model = load(directory, CPU, torch.float32, backends=PATHS[path])
    assert model.exact
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    want = published.straight_forward(config, exact, IDS)
    close(logits_of(model.decoder, IDS, mode), want)
    # In chunks the later tokens read the earlier ones from their pages.
    close(logits_of(model.decoder, IDS, mode, 5), want)


HUGGING_FACE = {
    "llama": (transformers.LlamaConfig, {}),
    "llama-relu": (transformers.LlamaConfig, {"hidden_act": "relu"}),
    "llama-tied": (transformers.LlamaConfig, {"tie_word_embeddings": True, "head_dim": 16}),
    "llama3-rope": (
        transformers.LlamaConfig,
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear-rope": (
        transformers.LlamaConfig,
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "mistral-window": (transformers.MistralConfig, {"sliding_window": 7}),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_families_of_transformers_equal_transformers(tmp_path, name, path):
    config_class, changes = HUGGING_FACE[name]
    fields = {k: v for k, v in published.BASE.items() if k not in ("torch_dtype", "rope_theta")}
    torch.manual_seed(0)
    config = config_class(**fields | changes, attn_implementation="eager")
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in theirs.parameters():  # the default initialisation is too small to tell much
        parameter.data.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path)
    model = load(tmp_path, CPU, torch.float32, backends=PATHS[path])
    with torch.no_grad():
        want = theirs(torch.tensor([IDS])).logits[0]
    got = logits_of(model.decoder, IDS, FfnMode.DENSE, 11)
    close(got, want)


@pytest.mark.parametrize("name", ["turbosparse-mistral", "prosparse"])
def test_cpu_logits_do_not_depend_on_chunking(tmp_path, name):
    """Bit for bit: what makes greedy text independent of neighbours and of the prefix cache."""
    model = load(published.make(tmp_path, name), CPU, torch.float32)
    whole = logits_of(model.decoder, IDS, FfnMode.TOKEN)
    for chunk in (1, 3, 8):
        assert torch.equal(logits_of(model.decoder, IDS, FfnMode.TOKEN, chunk), whole)
    dense = logits_of(model.decoder, IDS, FfnMode.DENSE)
    assert torch.equal(logits_of(model.decoder, IDS, FfnMode.DENSE, 2), dense)


def test_shape_is_taken_from_the_tensors_of_each_predictor(tmp_path):
    model = load(published.make(tmp_path, "turbosparse-mistral"), CPU, torch.float32)
    ranks = [layer.ffn.predictor.fc1.weight.shape[0] for layer in model.decoder.layers]
    assert ranks == [12, 13, 14]


def test_transformers_five_rope_parameters_are_read(tmp_path):
    directory = published.make(tmp_path, "bamboo")
    config = json.loads((directory / "config.json").read_text())
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 123.0}
    (directory / "config.json").write_text(json.dumps(config))
    assert load(directory, CPU, torch.float32).config.rope.theta == 123.0
