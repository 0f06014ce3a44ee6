"""Which architectures are served. One line here adds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .config import ModelConfig, ModelError
from .families import bamboo, llama, minicpm, mistral, mixtral, sparsellama
from .fields import Json
from .weights import Source


@dataclass(frozen=True, slots=True)
class Family:
    """How to read a config.json and where each model weight comes from."""

    parse: Callable[[Json], ModelConfig]
    sources: Callable[[ModelConfig], dict[str, Source]]


# By model_type, not by class name: `SparseLlamaForCausalLM` is two different architectures.
ARCHITECTURES = {
    "bamboo": Family(bamboo.parse, bamboo.sources),
    "llama": Family(llama.parse, llama.sources),
    "llama_sparse_relu": Family(llama.parse_sparse_relu, llama.sources),
    "minicpm": Family(minicpm.parse, minicpm.sources),
    "mistral": Family(mistral.parse, mistral.sources),
    "mixtral": Family(mixtral.parse, mixtral.sources),
    "sparsellama": Family(sparsellama.parse, sparsellama.sources),
    "turbosparsemixtral": Family(mixtral.parse_turbosparse, mixtral.sources),
}


def find_family(json: Json) -> Family:
    """The family of a config.json; raises ModelError with the list of those supported."""
    model_type = json.get("model_type")
    if isinstance(model_type, str) and model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    raise ModelError(
        f"config.json: model_type={model_type!r} (architectures={json.get('architectures')!r}) is "
        f"not supported. Supported: {', '.join(sorted(ARCHITECTURES))}."
    )
