"""`sparsellama`: ProSparse, a Llama whose gate passes a thresholded ReLU."""

from __future__ import annotations

from ..config import Activation, ModelConfig
from ..fields import Json
from .naming import mlp_sources as sources
from .parsing import activation_of, fatrelu_threshold, llama_config

__all__ = ["parse", "sources"]


def parse(json: Json) -> ModelConfig:
    activation = activation_of(json, {"fatrelu": Activation.FATRELU, "relu": Activation.RELU})
    threshold = fatrelu_threshold(json, activation)
    return llama_config(json, "sparsellama", activation, threshold=threshold)
