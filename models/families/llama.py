"""`llama`: SwiGLU (dense) and ReLU-gated (ReluLLaMA). `llama_sparse_relu`: SakanaAI's SparseLM."""

from __future__ import annotations

from ..config import Activation, ModelConfig
from .common import Json, activation_of, llama_config
from .common import mlp_sources as sources

__all__ = ["parse", "parse_sparse_relu", "sources"]


def parse(json: Json) -> ModelConfig:
    known = {"silu": Activation.SILU, "relu": Activation.RELU}
    return llama_config(json, "llama", activation_of(json, known))


def parse_sparse_relu(json: Json) -> ModelConfig:
    """Its config says silu; its published code applies ReLU to the gate whatever the config says."""
    return llama_config(json, "llama_sparse_relu", Activation.RELU)
