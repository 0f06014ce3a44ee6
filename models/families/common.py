"""What the Llama-shaped `config.json` files share, and how their tensors are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config import Activation, ModelConfig, ModelError, Rope
from ..weights import Layout, Source

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed reading of a config.json; a missing or ill-typed field is named."""

    json: Json

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ModelError(f"config.json: {name} must be an integer, got {value!r}")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ModelError(f"config.json: {name} must be a number, got {value!r}")
        return float(value)

    def text(self, name: str, default: str) -> str:
        value = self.json.get(name)
        value = default if value is None else value
        if not isinstance(value, str):
            raise ModelError(f"config.json: {name} must be a string, got {value!r}")
        return value

    def refuse(self, name: str, *neutral: object) -> None:
        """Raise unless the field is absent, null or neutral: it would change the function."""
        value = self.json.get(name)
        if value is not None and value not in neutral:
            raise ModelError(f"config.json: {name}={value!r} is not supported")


def parse_rope(json: Json) -> Rope:
    """`rope_parameters` (transformers 5), else `rope_theta` with `rope_scaling`."""
    nested = json.get("rope_parameters") or json.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise ModelError(f"config.json: rope_scaling must be an object, got {nested!r}")
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
        tie_embeddings=bool(json.get("tie_word_embeddings", False)),
        dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
    )
    if config.num_heads % config.num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads={num_heads} is not a multiple of "
            f"num_key_value_heads={config.num_kv_heads}"
        )
    return config


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


def decoder_sources(config: ModelConfig) -> dict[str, Source]:
    """Model weight -> checkpoint tensors, for everything but the FFN."""
    sources = {
        "embedding": Source(("model.embed_tokens.weight",)),
        "norm.weight": Source(("model.norm.weight",)),
    }
    if not config.tie_embeddings:
        sources["lm_head.weight"] = Source(("lm_head.weight",))
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        heads = tuple(f"{theirs}.self_attn.{p}_proj.weight" for p in "qkv")
        sources |= {
            f"{ours}.attention_norm.weight": Source((f"{theirs}.input_layernorm.weight",)),
            f"{ours}.ffn_norm.weight": Source((f"{theirs}.post_attention_layernorm.weight",)),
            f"{ours}.attention.qkv.weight": Source(heads),
            f"{ours}.attention.out.weight": Source((f"{theirs}.self_attn.o_proj.weight",)),
        }
    return sources


def ffn_sources(
    config: ModelConfig, ours: str, theirs: str, gate: str, up: str, down: str
) -> dict[str, Source]:
    """One FFN's weights, where the checkpoint calls its projections `gate`, `up` and `down`."""
    gate, up, down = (f"{theirs}.{name}.weight" for name in (gate, up, down))
    sources = {f"{ours}.gate_up": Source((gate, up), Layout.NEURONS)}
    if config.activation.is_sparse:
        sources[f"{ours}.down"] = Source((down,), Layout.TRANSPOSED)
    else:
        sources[f"{ours}.down.weight"] = Source((down,))
    if config.predictor:
        for layer in ("fc1", "fc2"):
            name = f"{theirs}.predictor.{layer}.weight"
            sources[f"{ours}.predictor.{layer}.weight"] = Source((name,))
    return sources


def mlp_sources(config: ModelConfig) -> dict[str, Source]:
    """A dense decoder: `mlp.{gate,up,down}_proj` in each layer."""
    sources = decoder_sources(config)
    for i in range(config.num_layers):
        names = ("gate_proj", "up_proj", "down_proj")
        sources |= ffn_sources(config, f"layers.{i}.ffn", f"model.layers.{i}.mlp", *names)
    return sources


def moe_sources(config: ModelConfig) -> dict[str, Source]:
    """A Mixtral: `block_sparse_moe.gate` routes, experts call gate, up, down w1, w3, w2."""
    sources = decoder_sources(config)
    for i in range(config.num_layers):
        ours, theirs = f"layers.{i}.ffn", f"model.layers.{i}.block_sparse_moe"
        sources[f"{ours}.router.weight"] = Source((f"{theirs}.gate.weight",))
        for e in range(config.num_experts):
            names = (f"{ours}.experts.{e}", f"{theirs}.experts.{e}", "w1", "w3", "w2")
            sources |= ffn_sources(config, *names)
    return sources
