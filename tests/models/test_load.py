"""What published checkpoints do to loaders, and what a damaged one gets told."""

import json

import published
import pytest
import torch
from safetensors.torch import save_file
from whole import logits_of

from turbosparse.models.batch import FfnMode
from turbosparse.models.config import Activation, ModelError
from turbosparse.models.load import eos_token_ids, load, read_config

CPU = torch.device("cpu")
IDS = list(range(20))


def read(directory, **options):
    return load(directory, CPU, torch.float32, **options)


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_both_end_of_sequence_ids_count(tmp_path):
    """TurboSparse-Mistral's config.json says 2 and its tokenizer ends a turn with 32000."""
    directory = published.make(tmp_path, "turbosparse-mistral", eos_token_id=2)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (directory / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"id": 90, "content": "<|im_end|>"}]})
    )
    assert eos_token_ids(directory) == (2, 90)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert eos_token_ids(directory) == (2, 7, 90)


def test_eos_is_also_found_where_older_tokenizers_list_it(tmp_path):
    directory = published.make(tmp_path, "bamboo")
    settings = {
        "eos_token": {"content": "</s>"},
        "added_tokens_decoder": {"5": {"content": "</s>"}, "6": {"content": "<pad>"}},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    assert eos_token_ids(directory) == (5,)


def test_one_class_name_two_architectures(tmp_path):
    """`SparseLlamaForCausalLM` is ProSparse and SakanaAI's; the latter's config also says silu."""
    prosparse = read_config(published.make(tmp_path / "a", "prosparse"))[1]
    sakana = read_config(published.make(tmp_path / "b", "sakana"))[1]
    assert (prosparse.activation, prosparse.threshold) == (Activation.FATRELU, 0.01)
    assert sakana.activation is Activation.RELU


def test_a_checkpoint_with_predictors_is_never_run_without_them(tmp_path):
    """Renaming TurboSparse to Mistral runs elsewhere, and silently computes another function."""
    directory = published.make(tmp_path, "turbosparse-mistral")
    edit(directory, model_type="mistral", hidden_act="silu")
    with pytest.raises(ModelError, match=r"part of its function"):
        read(directory)


def test_a_lost_predictor_tensor_is_named(tmp_path):
    config = published.config_of("turbosparse-mistral")
    tensors = published.make_tensors(config, predictor=True)
    lost = "model.layers.1.mlp.predictor.fc2.weight"
    del tensors[lost]
    with pytest.raises(ModelError, match=rf"missing +{lost}"):
        read(published.save(tmp_path, config, tensors))


def test_turbosparse_mixtral_without_predictors_is_refused(tmp_path):
    config = published.config_of("turbosparse-mixtral")
    directory = published.save(tmp_path, config, published.make_tensors(config, predictor=False))
    with pytest.raises(ModelError, match=r"missing .*experts\.7\.predictor\.fc1"):
        read(directory)


def test_the_mask_changes_the_function(tmp_path):
    """If this fails, every other test of the mask proves nothing."""
    config = published.config_of("turbosparse-mistral")
    tensors = published.make_tensors(config, predictor=True)
    plain = {name: t for name, t in tensors.items() if "predictor" not in name}
    masked = read(published.save(tmp_path / "a", config, tensors))
    unmasked = read(published.save(tmp_path / "b", config, plain))
    assert (masked.config.predictor, unmasked.config.predictor) == (True, False)
    difference = logits_of(masked.decoder, IDS, FfnMode.TOKEN) - logits_of(
        unmasked.decoder, IDS, FfnMode.TOKEN
    )
    assert difference.abs().max() > 0.1


def test_every_missing_and_unexpected_tensor_is_named(tmp_path):
    config = published.config_of("bamboo")
    tensors = published.make_tensors(config, predictor=False)
    del tensors["model.norm.weight"], tensors["model.layers.0.self_attn.k_proj.weight"]
    tensors["model.layers.9.surprise"] = torch.zeros(1)
    with pytest.raises(ModelError) as caught:
        read(published.save(tmp_path, config, tensors))
    for line in (
        "missing     model.layers.0.self_attn.k_proj.weight",
        "missing     model.norm.weight",
        "unexpected  model.layers.9.surprise",
    ):
        assert line in str(caught.value)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    directory = published.make(tmp_path, "bamboo")
    edit(directory, intermediate_size=104)
    with pytest.raises(ModelError, match=r"gate_proj.*has shape \[100, 96\].*\[104, 96\]"):
        read(directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"Supported: bamboo, llama"),
        ({"model_type": None}, r"Supported: bamboo, llama"),
        ({"hidden_act": "gelu"}, r"hidden_act='gelu'"),
        ({"attention_bias": True}, r"attention_bias=True"),
        ({"quantization_config": {"bits": 4}}, r"quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, r"'yarn' is not supported"),
        ({"num_hidden_layers": "six"}, r"num_hidden_layers must be a positive integer, got 'six'"),
        ({"num_key_value_heads": 4}, r"not a multiple of num_key_value_heads"),
    ],
)
def test_a_config_that_asks_for_another_function_is_refused_by_name(tmp_path, changes, message):
    directory = published.make(tmp_path, "bamboo")
    edit(directory, **changes)
    with pytest.raises(ModelError, match=message):
        read(directory)


def test_missing_and_damaged_files_are_told_apart(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        read(tmp_path)
    directory = published.make(tmp_path, "bamboo")
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ModelError, match="not a readable safetensors file"):
        read(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="only safetensors checkpoints are read"):
        read(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read(directory)


def test_a_shared_table_stored_twice_is_read_once(tmp_path):
    config = published.config_of("sakana")
    tensors = published.make_tensors(config, predictor=False)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    assert read(published.save(tmp_path, config, tensors)).decoder.lm_head is None


# Separate predictors (PowerInfer's folders): approximate by definition.


def write_predictors(folder, config, *, neurons=None, threshold=None):
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    neurons = neurons or config["intermediate_size"]
    for i in range(config["num_hidden_layers"]):
        state = {
            "fc1.weight": torch.randn(8, config["hidden_size"], generator=generator),
            "fc2.weight": torch.randn(neurons, 8, generator=generator),
        }
        torch.save(state, folder / f"model_{i}.pt")
    if threshold is not None:
        (folder / "config.json").write_text(json.dumps({"sparse_threshold": threshold}))
    return folder


def test_separate_predictors_make_a_model_approximate(tmp_path):
    directory = published.make(tmp_path / "model", "bamboo")
    folder = write_predictors(tmp_path / "predictors", published.config_of("bamboo"), threshold=0.5)
    exact, model = read(directory), read(directory, predictors=folder)
    assert (exact.exact, exact.approximation) == (True, None)
    assert (model.exact, model.approximation) == (
        False,
        "separate predictors from predictors (threshold 0.5)",
    )
    modes = [logits_of(model.decoder, IDS, mode) for mode in FfnMode]
    torch.testing.assert_close(modes[0], modes[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(modes[0], modes[2], atol=1e-4, rtol=0)
    assert (modes[0] - logits_of(exact.decoder, IDS, FfnMode.DENSE)).abs().max() > 0.1


def test_separate_predictors_that_do_not_belong_are_refused(tmp_path):
    config = published.config_of("bamboo")
    directory = published.make(tmp_path / "model", "bamboo")
    other = write_predictors(tmp_path / "other", config, neurons=64)
    with pytest.raises(ModelError, match=r"model_0\.pt: fc1 .* do not fit"):
        read(directory, predictors=other)
    folder = write_predictors(tmp_path / "ours", config)
    (folder / "model_2.pt").unlink()
    with pytest.raises(ModelError, match=r"model_2\.pt is missing"):
        read(directory, predictors=folder)
    turbo = published.make(tmp_path / "turbo", "turbosparse-mistral")
    with pytest.raises(ModelError, match="predictors of its own"):
        read(turbo, predictors=folder)


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


def test_a_predictor_file_cannot_run_code(tmp_path, capsys):
    config = published.config_of("bamboo")
    directory = published.make(tmp_path / "model", "bamboo")
    folder = write_predictors(tmp_path / "predictors", config)
    torch.save({"fc1.weight": Evil()}, folder / "model_0.pt")
    with pytest.raises(ModelError, match=r"model_0\.pt is damaged, or holds more than tensors"):
        read(directory, predictors=folder)
    assert "ran code" not in capsys.readouterr().out


def test_bf16_checkpoints_load_in_fp32_and_in_their_own_dtype(tmp_path):
    config = published.config_of("turbosparse-mistral")
    tensors = published.make_tensors(config, predictor=True)
    directory = published.save(tmp_path, config, {n: t.bfloat16() for n, t in tensors.items()})
    wide = read(directory)
    narrow = load(directory, CPU, torch.bfloat16)
    assert wide.kernels["ffn"] == "cpu"
    assert narrow.kernels["ffn"] == "reference"
    assert "float32" in narrow.declined["cpu"]
    assert narrow.decoder.embedding.dtype is torch.bfloat16


def test_safetensors_shards_that_are_lost_are_named(tmp_path):
    directory = published.make(tmp_path, "bamboo", shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="00002-of-00003.safetensors is named in the index"):
        read(directory)


def test_rotary_buffers_stored_by_old_exporters_are_no_surprise(tmp_path):
    config = published.config_of("bamboo")
    tensors = published.make_tensors(config, predictor=False)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, published.save(tmp_path, config, tensors) / "model.safetensors")
    assert read(tmp_path).exact
