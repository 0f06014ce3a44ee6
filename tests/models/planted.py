"""A small ReLU model whose neurons are easy to foresee, and text in its own words."""

import random
from pathlib import Path

import published
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

HIDDEN, NEURONS, LAYERS, VOCAB = 64, 96, 2, 97
DIRECTIONS = 4  # of the residual that gate and up look at


def make(directory: Path, name: str = "bamboo", **changes) -> Path:
    """The published layout, with gate and up of few directions and few active neurons."""
    config = published.config_of(name) | {
        "hidden_size": HIDDEN,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **changes,
    }
    tensors = published.make_tensors(config, predictor=name in published.HAS_PREDICTOR)
    generator = torch.Generator().manual_seed(1)
    for key, value in tensors.items():
        if key.endswith(("gate_proj.weight", "up_proj.weight")):
            directions = torch.randn(DIRECTIONS, value.shape[1], generator=generator)
            mixed = torch.randn(len(value), DIRECTIONS, generator=generator) @ directions
            value.copy_(mixed / mixed.norm(dim=1, keepdim=True))
    published.save(directory, config, tensors)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def write_text(path: Path, num_words: int = 3000, seed: int = 0) -> Path:
    rng = random.Random(seed)
    words = [f"w{rng.randrange(VOCAB)}" for _ in range(num_words)]
    lines = [" ".join(words[i : i + 20]) for i in range(0, num_words, 20)]
    path.write_text("\n".join(lines) + "\n")
    return path
