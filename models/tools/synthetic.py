"""Random checkpoints of any shape in the published layouts, predictors planted: for speed alone.

A planted predictor keeps a set share of the neurons, some hot and some cold, so that the union over
a batch grows as it does in the bundled model (6.8 % of the neurons for one token, 38 % for 8 of
different texts, 70 % for 32). Everything measured on such a model is to be labelled synthetic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn

from ..config import ModelError
from ..decoder import Decoder
from ..load import load
from ..sequence import observe, random_ids
from ..sparsity.ffn import SparseFFN
from ..sparsity.predictor import LowRankPredictor

# family -> (model_type, class, hidden_act): as published
FAMILIES = {
    "mistral": ("mistral", "MistralForCausalLM", "silu"),
    "turbosparse-mistral": ("bamboo", "BambooForCausalLM", "relu"),
    "bamboo": ("bamboo", "BambooForCausalLM", "relu"),
}
BYTES = 256
SAMPLES = 1024  # tokens on which a predictor's thresholds are planted


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes; the defaults make 16 M parameters."""

    hidden: int = 384
    layers: int = 6
    neurons: int = 1536
    vocab: int = 8192
    heads: int = 6
    kv_heads: int = 2
    positions: int = 4096

    @property
    def rank(self) -> int:
        """The published mean rank, 1260 of 4096, at this width."""
        return max(1, round(self.hidden * 1260 / 4096))

    def check(self) -> None:
        """Raise ModelError, naming the size that cannot be."""
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ModelError(f"{field.name}={getattr(self, field.name)} is not positive")
        if self.hidden % (2 * self.heads):
            raise ModelError(f"hidden={self.hidden} is not an even multiple of heads={self.heads}")
        if self.heads % self.kv_heads:
            raise ModelError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.vocab <= BYTES:
            raise ModelError(f"vocab={self.vocab} leaves no room beside the {BYTES} bytes")


def make(out: Path, family: str, shape: Shape, *, density: float = 0.1, seed: int = 0) -> None:
    """Write a checkpoint directory: config, weights, tokenizer. The mask keeps `density`.

    Raises ModelError, naming the argument that cannot be.
    """
    if family not in FAMILIES:
        raise ModelError(f"family={family!r} is not one of {', '.join(FAMILIES)}")
    if not 0 < density < 1:
        raise ModelError(f"density={density} is not between 0 and 1")
    shape.check()
    generator = torch.Generator().manual_seed(seed)
    config = json.dumps(_config(family, shape), indent=2)
    tensors = _tensors(shape, family == "turbosparse-mistral", generator)
    out.mkdir(parents=True, exist_ok=True)
    if family == "turbosparse-mistral":
        with tempfile.TemporaryDirectory(dir=out) as unplanted:
            _write(Path(unplanted), config, tensors)
            decoder = load(Path(unplanted), torch.device("cpu"), torch.float32).decoder
            with planting(decoder, density, generator) as planted:
                observe(decoder, random_ids(decoder, SAMPLES))
            for layer, fc2 in enumerate(planted):
                tensors[f"model.layers.{layer}.mlp.predictor.fc2.weight"] = fc2
    _write(out, config, tensors)
    byte_tokenizer(shape.vocab).save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))


def _write(directory: Path, config: str, tensors: dict[str, Tensor]) -> None:
    (directory / "config.json").write_text(config)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def _config(family: str, shape: Shape) -> dict[str, object]:
    model_type, architecture, act = FAMILIES[family]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": act,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.neurons,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": shape.vocab - 1,
    }


def _tensors(shape: Shape, predictor: bool, generator: torch.Generator) -> dict[str, Tensor]:
    def random(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    kv = shape.hidden // shape.heads * shape.kv_heads
    tensors = {
        "model.embed_tokens.weight": random(shape.vocab, shape.hidden) * shape.hidden**0.5,
        "model.norm.weight": torch.ones(shape.hidden),
        "lm_head.weight": random(shape.vocab, shape.hidden),
    }
    for i in range(shape.layers):
        layer, mlp = f"model.layers.{i}", f"model.layers.{i}.mlp"
        tensors[f"{layer}.input_layernorm.weight"] = torch.ones(shape.hidden)
        tensors[f"{layer}.post_attention_layernorm.weight"] = torch.ones(shape.hidden)
        for name, rows in (("q", shape.hidden), ("k", kv), ("v", kv), ("o", shape.hidden)):
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = random(rows, shape.hidden)
        tensors[f"{mlp}.gate_proj.weight"] = random(shape.neurons, shape.hidden)
        tensors[f"{mlp}.up_proj.weight"] = random(shape.neurons, shape.hidden)
        tensors[f"{mlp}.down_proj.weight"] = random(shape.hidden, shape.neurons)
        if predictor:
            tensors[f"{mlp}.predictor.fc1.weight"] = random(shape.rank, shape.hidden)
            tensors[f"{mlp}.predictor.fc2.weight"] = random(shape.neurons, shape.rank)
    return tensors


def plant_thresholds(
    residual: Tensor, fc1: Tensor, fc2: Tensor, density: float, generator: torch.Generator
) -> Tensor:
    """fc2 such that each neuron fires on a share of the residuals: Beta(1, 1 / density - 1).

    There are no biases, and the hidden units are not negative, so subtracting c from a row of fc2
    turns `score > 0` into `score / sum(hidden) > c`: a threshold that does not depend on the scale.
    """
    hidden = (residual.float() @ fc1.float().T).relu()
    ratios = (hidden / hidden.sum(1, keepdim=True)) @ fc2.float().T  # [samples, N]
    seed = int(torch.randint(2**31, (), generator=generator))  # torch's Beta takes no generator
    fires = np.random.default_rng(seed).beta(1.0, 1.0 / density - 1.0, fc2.shape[0])
    rank = ((1 - torch.from_numpy(fires)) * (len(ratios) - 1)).round().long().to(fc2.device)
    threshold = ratios.sort(0).values.gather(0, rank[None])[0]
    return (fc2.float() - threshold[:, None]).to(fc2.dtype)


@contextmanager
def planting(
    decoder: Decoder, density: float, generator: torch.Generator
) -> Generator[list[Tensor]]:
    """A forward pass inside sets every layer's predictor on the residuals it meets.

    Layer by layer in that one pass, so that each sees what the planted masks before it leave;
    yields each layer's fc2.
    """
    planted: list[Tensor] = []

    def before(ffn: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        assert isinstance(ffn, SparseFFN)
        predictor = ffn.predictor
        assert isinstance(predictor, LowRankPredictor)
        fc1, fc2 = predictor.fc1.weight, predictor.fc2.weight
        planted.append(plant_thresholds(args[1], fc1, fc2, density, generator))
        predictor.fc2.weight = nn.Parameter(planted[-1], requires_grad=False)

    ffns = [layer.get_submodule("ffn") for layer in decoder.layers]
    hooks = [ffn.register_forward_pre_hook(before) for ffn in ffns]
    try:
        yield planted
    finally:
        for hook in hooks:
            hook.remove()


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of the first pairs of bytes: any text encodes, any id decodes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for first in alphabet:
        for second in alphabet:
            if len(vocab) < vocab_size:
                merges.append((first, second))
                vocab[first + second] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse make-model`."""
    shape = Shape()
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="mistral")
    for field in fields(Shape):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(shape, field.name))
    parser.add_argument("--density", type=float, default=0.1, help="share that a predictor keeps")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> None:
    """Write what the parsed flags ask for; raises ModelError."""
    shape = Shape(**{field.name: getattr(arguments, field.name) for field in fields(Shape)})
    make(arguments.out, arguments.family, shape, density=arguments.density, seed=arguments.seed)
    print(f"wrote {arguments.out}: a random {arguments.family}, for measuring speed alone")
