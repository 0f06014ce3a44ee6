"""Where the Llama-shaped checkpoints keep each model weight."""

from __future__ import annotations

from ..config import ModelConfig
from ..weights import Layout, Source


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
