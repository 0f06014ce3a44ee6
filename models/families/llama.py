"""`llama`: SwiGLU (dense) and ReLU-gated (ReluLLaMA). `llama_sparse_relu`: SakanaAI's SparseLM."""

from __future__ import annotations

from ..config import Activation, ModelConfig
from ..fields import Json
from .naming import mlp_sources as sources
from .parsing import activation_of, llama_config

__all__ = ["parse", "parse_sparse_relu", "sources"]


def parse(json: Json) -> ModelConfig:
    known = {"silu": Activation.SILU, "relu": Activation.RELU}
    return llama_config(json, "llama", activation_of(json, known))


def parse_sparse_relu(json: Json) -> ModelConfig:
    """Its config says silu; its published code applies ReLU to the gate all the same."""
    return llama_config(json, "llama_sparse_relu", Activation.RELU)
