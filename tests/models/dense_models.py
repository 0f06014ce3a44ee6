"""Tiny dense models of transformers with some text, and the command line that makes them sparse."""

from pathlib import Path

import torch
import transformers

from turbosparse.models.tools.shapes import byte_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 64,
    "eos_token_id": 319,
}
FLAGS = {
    "tokens": 24 * 256,
    "batch-tokens": 256,
    "sequence-length": 32,
    "micro-batch": 4,
    "rank": 8,
    "learning-rate": 1e-2,
    "final-learning-rate": 1e-3,
    "warmup-steps": 2,
    "log-steps": 1,
    "save-steps": 5,
    "seed": 1,
}


def make_home(folder: Path) -> Path:
    """A folder with two dense models, text to learn, and text to measure on."""
    write_dense(folder / "llama", transformers.LlamaConfig(**SIZES))
    write_dense(folder / "mistral", transformers.MistralConfig(**SIZES, sliding_window=9))
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    (folder / "unseen.txt").write_text("the lazy fox jumps over the brown dog\n" * 40)
    return folder


def write_dense(out: Path, config: transformers.PretrainedConfig) -> None:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(out)
    byte_tokenizer(320).save(str(out / "tokenizer.json"))
    (out / "generation_config.json").write_text('{"eos_token_id": [319, 7]}')


def command(home: Path, out: Path, model: str, *more: str, **changes: object) -> list[str]:
    """The arguments of `turbosparse`."""
    flags = FLAGS | {name.replace("_", "-"): value for name, value in changes.items()}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    data = ["--data", str(home / "text.txt"), "--holdout", str(home / "unseen.txt")]
    return ["sparsify", str(home / model), "--out", str(out), *data, *words, *more]
