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


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_nor_is_one_renamed_to_another_family(tmp_path, family):
    name = "turbosparse-mixtral" if family == "mixtral" else "turbosparse-mistral"
    directory = published.make(tmp_path, name)
    edit(directory, model_type=family, hidden_act="silu")
    with pytest.raises(ModelError, match=r"its own config\.json \(model_type 'bamboo' or"):
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


def test_the_vocabulary_may_be_larger_than_the_tokenizer(tmp_path):
    """TurboSparse-Mistral has 32064 rows for 32002 tokens, TurboSparse-Mixtral 57024."""
    directory = published.make(tmp_path, "turbosparse-mistral", vocab_size=128)
    added = [{"id": i, "content": f"<{i}>"} for i in range(97)]
    (directory / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<96>"}))
    model = read(directory)
    assert model.eos_token_ids == (2, 96)
    assert logits_of(model.decoder, IDS, FfnMode.TOKEN).shape == (len(IDS), 128)


def test_relu_is_never_run_as_silu(tmp_path):
    """An engine that knows only SwiGLU loads these too, and computes something else."""
    relu = published.make(tmp_path / "a", "sakana", model_type="llama", hidden_act="relu")
    silu = published.make(tmp_path / "b", "sakana", model_type="llama", hidden_act="silu")
    models = [read(relu), read(silu)]
    assert [m.config.activation for m in models] == [Activation.RELU, Activation.SILU]
    logits = [logits_of(m.decoder, IDS, FfnMode.DENSE) for m in models]
    assert (logits[0] - logits[1]).abs().max() > 0.1
    edit(relu, model_type="mistral")
    with pytest.raises(ModelError, match=r"hidden_act='relu' is not supported here"):
        read(relu)


def test_a_sliding_window_hides_the_far_past(tmp_path):
    """TurboSparse-Mistral's is 4096: beyond it an engine without the window diverges."""
    windowed = read(published.make(tmp_path / "a", "turbosparse-mistral"))
    full = read(published.make(tmp_path / "b", "turbosparse-mistral", sliding_window=None))
    off = published.make(tmp_path / "c", "turbosparse-mistral", use_sliding_window=False)
    assert windowed.config.sliding_window == 9
    assert read(off).config.sliding_window is None
    a, b = (logits_of(m.decoder, IDS, FfnMode.DENSE) for m in (windowed, full))
    torch.testing.assert_close(a[:9], b[:9], atol=1e-4, rtol=0)
    assert (a[9:] - b[9:]).abs().amax(1).min() > 0.01


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
        ({"num_hidden_layers": 0}, r"num_hidden_layers must be a positive integer, got 0"),
        ({"hidden_size": True}, r"hidden_size must be a positive integer, got True"),
        ({"rms_norm_eps": "small"}, r"rms_norm_eps must be a number, got 'small'"),
        ({"hidden_act": ["relu"]}, r"hidden_act must be a string, got \['relu'\]"),
        ({"tie_word_embeddings": "no"}, r"tie_word_embeddings must be true or false, got 'no'"),
        ({"rope_scaling": 3}, r"rope_scaling: expected an object, got 3"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5 is not supported"),
        ({"sliding_window": -1}, r"sliding_window must be a positive integer, got -1"),
        ({"num_hidden_layers": "six"}, r"num_hidden_layers must be a positive integer, got 'six'"),
        ({"num_key_value_heads": 4}, r"not a multiple of num_key_value_heads"),
    ],
)
def test_a_config_that_asks_for_another_function_is_refused_by_name(tmp_path, changes, message):
    directory = published.make(tmp_path, "bamboo")
    edit(directory, **changes)
    with pytest.raises(ModelError, match=message):
        read(directory)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("prosparse", {"hidden_act_param": None}, r"'fatrelu' needs hidden_act_param"),
        ("minicpm-s", {"hidden_act_param": "x"}, r"hidden_act_param must be a number, got 'x'"),
        ("turbosparse-mixtral", {"num_experts_per_tok": 9}, r"num_experts_per_tok=9 of num_local"),
        ("bamboo", {"head_dim": 7}, r"head_dim=7 is odd"),
    ],
)
def test_what_a_family_cannot_do_without_is_named(tmp_path, name, changes, message):
    directory = published.make(tmp_path, name)
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


def test_config_json_may_be_damaged_in_other_ways(tmp_path):
    directory = published.make(tmp_path, "bamboo")
    for content, message in (
        (b"[]", r"config\.json: expected an object, got \[\]"),
        (b"\xff\xfe", r"config\.json is not JSON"),
    ):
        (directory / "config.json").write_bytes(content)
        with pytest.raises(ModelError, match=message):
            read(directory)


@pytest.mark.parametrize(
    "weight_map", [None, 5, {}, {"a": 1}, {"a": "../model.safetensors"}, {"a": "/etc/passwd"}]
)
def test_an_index_that_maps_to_no_file_beside_it_is_refused(tmp_path, weight_map):
    directory = published.make(tmp_path, "bamboo")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"index\.json: weight_map"):
        read(directory)


def test_projections_that_do_not_fit_together_are_named(tmp_path):
    config = published.config_of("bamboo")
    tensors = published.make_tensors(config, predictor=False)
    up = "model.layers.2.mlp.up_proj.weight"
    tensors[up] = tensors[up][:-1].contiguous()
    with pytest.raises(ModelError, match=rf"{up}: shapes \[\[100, 48\], \[99, 48\]\] do not fit"):
        read(published.save(tmp_path, config, tensors))


def test_a_shared_table_stored_twice_is_read_once(tmp_path):
    config = published.config_of("sakana")
    tensors = published.make_tensors(config, predictor=False)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    assert read(published.save(tmp_path, config, tensors)).decoder.lm_head is None


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
    with pytest.raises(ModelError, match=r"00002-of-00003\.safetensors is named in the index"):
        read(directory)


def test_rotary_buffers_stored_by_old_exporters_are_no_surprise(tmp_path):
    config = published.config_of("bamboo")
    tensors = published.make_tensors(config, predictor=False)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, published.save(tmp_path, config, tensors) / "model.safetensors")
    assert read(tmp_path).exact
