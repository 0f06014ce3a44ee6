"""`minicpm`: MiniCPM-S and sparsing-law, with MiniCPM's three scales."""

from __future__ import annotations

from dataclasses import replace

from ..config import Activation, ModelConfig
from ..fields import Fields, Json
from .naming import mlp_sources as sources
from .parsing import activation_of, fatrelu_threshold, llama_config

__all__ = ["parse", "sources"]


def parse(json: Json) -> ModelConfig:
    """Embeddings times scale_emb, each block's output times scale_depth / sqrt(layers), and the
    last hidden state divided by hidden_size / dim_model_base."""
    known = {
        "silu": Activation.SILU,
        "relu": Activation.RELU,
        "fatrelu": Activation.FATRELU,
    }
    fields, activation = Fields(json), activation_of(json, known)
    threshold = fatrelu_threshold(json, activation)
    config = llama_config(json, "minicpm", activation, threshold=threshold)
    return replace(
        config,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        embed_scale=fields.number("scale_emb", 1.0),
        residual_scale=fields.number("scale_depth", 1.0) / config.num_layers**0.5,
        logit_scale=fields.number("dim_model_base", 1.0) / config.hidden_size,
    )
