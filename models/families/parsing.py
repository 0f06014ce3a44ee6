"""What the Llama-shaped `config.json` files share."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import Activation, ModelConfig, ModelError, Rope
from ..fields import Fields, Json, as_object


def parse_rope(json: Json) -> Rope:
    """`rope_parameters` (transformers 5), else `rope_theta` with `rope_scaling`."""
    name = "rope_parameters" if json.get("rope_parameters") else "rope_scaling"
    nested = as_object(json.get(name) or {}, f"config.json: {name}")
    fields = Fields(nested)
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(
            f"config.json: rotary scaling {kind!r} is not supported (default, linear, llama3 are)"
        )
    fields.refuse("partial_rotary_factor", 1, 1.0)
    return Rope(
        theta=fields.number("rope_theta", Fields(json).number("rope_theta", 10_000.0)),
        kind=kind,
        factor=fields.number("factor", 1.0),
        low_freq_factor=fields.number("low_freq_factor", 1.0),
        high_freq_factor=fields.number("high_freq_factor", 4.0),
        original_max_positions=fields.integer("original_max_position_embeddings", 8192),
    )


def llama_config(
    json: Json, family: str, activation: Activation, *, threshold: float = 0.0
) -> ModelConfig:
    """The fields that every Llama-shaped decoder has."""
    fields = Fields(json)
    fields.refuse("attention_bias", False)
    fields.refuse("mlp_bias", False)
    fields.refuse("pretraining_tp", 1)
    fields.refuse("partial_rotary_factor", 1, 1.0)
    fields.refuse("quantization_config")
    hidden_size, num_heads = (fields.integer(f) for f in ("hidden_size", "num_attention_heads"))
    config = ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.integer("head_dim", hidden_size // num_heads),
        num_neurons=fields.integer("intermediate_size"),
        activation=activation,
        threshold=threshold,
        max_positions=fields.integer("max_position_embeddings", 2048),
        rms_eps=fields.number("rms_norm_eps", 1e-6),
        rope=parse_rope(json),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
    )
    if config.head_dim % 2:
        raise ModelError(f"config.json: head_dim={config.head_dim} is odd; rotary pairs are not")
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads={num_heads} is not a multiple of "
            f"num_key_value_heads={config.num_kv_heads}"
        )
    return config


def fatrelu_threshold(json: Json, activation: Activation) -> float:
    """`hidden_act_param`, without which FATReLU is not defined; 0 for other activations."""
    if activation is not Activation.FATRELU:
        return 0.0
    if json.get("hidden_act_param") is None:
        raise ModelError("config.json: hidden_act='fatrelu' needs hidden_act_param, its threshold")
    return Fields(json).number("hidden_act_param", 0.0)


def window(json: Json) -> int | None:
    """`sliding_window`, which Mistral-shaped configs may switch off with null or a flag."""
    if json.get("use_sliding_window") is False or json.get("sliding_window") is None:
        return None
    return Fields(json).integer("sliding_window")


def activation_of(json: Json, known: Mapping[str, Activation]) -> Activation:
    """`hidden_act` among those that this family's code computes."""
    name = Fields(json).text("hidden_act", "silu")
    if name not in known:
        raise ModelError(
            f"config.json: hidden_act={name!r} is not supported here (supported: {sorted(known)})"
        )
    return known[name]
