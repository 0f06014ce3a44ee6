"""`mistral`: SwiGLU with an optional sliding window."""

from __future__ import annotations

from dataclasses import replace

from ..config import Activation, ModelConfig
from ..fields import Json
from .naming import mlp_sources as sources
from .parsing import activation_of, llama_config, window

__all__ = ["parse", "sources"]


def parse(json: Json) -> ModelConfig:
    activation = activation_of(json, {"silu": Activation.SILU})
    return replace(llama_config(json, "mistral", activation), sliding_window=window(json))
