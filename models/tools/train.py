"""Trains the bundled model: a TurboSparse-Mistral in miniature, from nothing, on one machine.

First without the mask, the predictors learning to imitate what dReLU leaves; then with the mask in
the forward pass, learned through by the straight-through estimator.
"""
# pyright: basic

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from . import corpus
from .assess import Scores, answer, assess
from .card import model_card
from .trainable import Sizes, TurboSparse

SAMPLES = (
    "Hello!",
    "Who are you?",
    "What is activation sparsity?",
    "How do I start the server?",
    "What is 12 plus 7?",
    "What is the capital of France?",
    "Write a story about a fox.",
    "Reverse these words: apple, river, cloud",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long, how fast, how sparse."""

    minutes: float = 6.0
    batch: int = 128  # rows of `context` tokens
    learning_rate: float = 3e-3
    final_share: float = 0.05  # of the learning rate, at the end of the cosine
    warmup: int = 100
    weight_decay: float = 0.05
    dense_share: float = 0.4  # of the steps run without the mask
    target: float = 0.11  # neurons that a layer may keep
    imitation: float = 1.0
    pressure: float = 100.0
    conversations: int = 600_000
    seed: int = 0
    max_steps: int = 1_000_000


class Data:
    """Rows on the device; three sources, each step's batch drawn in fixed shares."""

    def __init__(self, sources: list[tuple[corpus.Encoded, float]], device: torch.device) -> None:
        self.rows = [
            (torch.from_numpy(ids).to(device), torch.from_numpy(weights).to(device))
            for (ids, weights), _ in sources
        ]
        self.shares = [share for _, share in sources]

    @property
    def num_tokens(self) -> int:
        return sum(ids.numel() for ids, _ in self.rows)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        counts = [round(size * share) for share in self.shares[:-1]]
        counts.append(size - sum(counts))
        parts = []
        for (ids, weights), count in zip(self.rows, counts, strict=True):
            chosen = torch.randint(len(ids), (count,), generator=generator).to(ids.device)
            parts.append((ids[chosen].long(), weights[chosen].float()))
        ids, weights = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return ids, weights


def prepare(
    data: Path, sizes: Sizes, recipe: Recipe, device: torch.device, processes: int
) -> tuple[Tokenizer, Data]:
    """Read and generate everything that is trained on."""
    chats, texts = corpus.read_dialogues(data, "train"), corpus.read_texts(data)
    own = [corpus.chat(m) for m in corpus.dialogues.generate(recipe.seed, 5000)]
    tokenizer = corpus.train_tokenizer(own + texts + chats, sizes.vocab)
    generated = corpus.generate_encoded(tokenizer, recipe.conversations, recipe.seed, processes)
    sources = [
        (corpus.encode(tokenizer, chats), 0.22),
        (corpus.encode(tokenizer, texts), 0.18),
        (generated, 0.60),
    ]
    packed = [(corpus.pack(encoded, sizes.context, 0), share) for encoded, share in sources]
    return tokenizer, Data(packed, device)


def learning_rate(recipe: Recipe, step: int, num_steps: int) -> float:
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = min(1.0, (step - recipe.warmup) / max(1, num_steps - recipe.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return recipe.learning_rate * (recipe.final_share + (1 - recipe.final_share) * cosine)


def optimizer_for(model: TurboSparse, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() != 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = matrices[0].device.type == "cuda"
    return torch.optim.AdamW(groups, recipe.learning_rate, betas=(0.9, 0.95), fused=fused)


def fit(model: TurboSparse, data: Data, recipe: Recipe, compile_model: bool) -> dict[str, float]:
    """Train in place until the time is up; returns what was done."""
    device = model.embed_tokens.weight.device
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = optimizer_for(model, recipe)
    run = torch.compile(model) if compile_model else model
    model.train()

    def step(masked: bool) -> tuple[Tensor, Tensor]:
        ids, weights = data.batch(recipe.batch, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, sparsity = run(ids[:, :-1], masked, recipe.target)
            losses = F.cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
            )
        weights = weights[:, 1:].flatten()
        loss = (losses * weights).sum() / weights.sum()
        imitation, excess, kept = sparsity.unbind(1)
        # Once the mask is in the forward pass it is learned through, and imitation only steadies it.
        imitated = recipe.imitation * (0.1 if masked else 1.0) * imitation.mean()
        total = loss + imitated + (recipe.pressure * excess.sum() if masked else 0.0)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach(), kept.detach().mean()

    for masked in (False, True):  # compile both, then measure
        for group in optimizer.param_groups:
            group["lr"] = 1e-6
        for _ in range(2):
            step(masked)[0].item()
    started = time.perf_counter()
    for _ in range(5):
        step(True)
    step(True)[0].item()
    seconds = (time.perf_counter() - started) / 6
    num_steps = min(recipe.max_steps, max(20, int(recipe.minutes * 60 / seconds)))
    tokens = recipe.batch * model.sizes.context
    print(f"{seconds * 1e3:.0f} ms and {tokens} tokens a step: {num_steps} steps", flush=True)
    started = last = time.perf_counter()
    for i in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, i, num_steps)
        loss, kept = step(masked=i >= recipe.dense_share * num_steps)
        if i % 100 == 0 or i == num_steps - 1:
            now = time.perf_counter()
            print(
                f"step {i:6}/{num_steps}  loss {loss.item():.4f}  kept {kept.item():6.1%}  "
                f"lr {optimizer.param_groups[0]['lr']:.1e}  {now - last:.1f} s",
                flush=True,
            )
            last = now
    return {
        "steps": num_steps,
        "tokens": num_steps * tokens,
        "seconds": time.perf_counter() - started,
        "final_loss": loss.item(),
    }


def save(out: Path, model: TurboSparse, tokenizer: Tokenizer, files: dict[str, object]) -> None:
    """Write the published layout beside `out`, then put it in its place in one move."""
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(model.published(), beside / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(beside / "tokenizer.json"), pretty=False)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        (beside / name).write_text(text)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(beside, out)


TOKENIZER_CONFIG = {
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "pad_token": "<unk>",
    "unk_token": "<unk>",
    "chat_template": corpus.CHAT_TEMPLATE,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
GENERATION_CONFIG = {
    "bos_token_id": corpus.BOS,
    "eos_token_id": [corpus.EOS, corpus.IM_END],
}


def round_to_published(model: TurboSparse) -> None:
    """What is measured is what is shipped: the weights as bf16 holds them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def train(
    data: Path, out: Path, sizes: Sizes, recipe: Recipe, *, compile_model: bool, processes: int
) -> Scores:
    """Everything from text to a checkpoint directory with its model card."""
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    tokenizer, rows = prepare(data, sizes, recipe, device, processes)
    print(
        f"{rows.num_tokens / 1e6:.1f} M tokens in {time.perf_counter() - started:.0f} s", flush=True
    )
    model = TurboSparse(sizes).to(device)
    done = fit(model, rows, recipe, compile_model)
    round_to_published(model)
    torch.set_float32_matmul_precision("highest")
    tests = [corpus.Document(t) for t in ["".join(corpus._lines(data, "wikitext2.test.txt.gz"))]]
    held_out = corpus.encode(tokenizer, corpus.read_dialogues(data, "dev"))
    scores = assess(model, tokenizer, corpus.encode(tokenizer, tests), held_out)
    samples = list(zip(SAMPLES, answer(model, tokenizer, list(SAMPLES)), strict=True))
    for question, said in samples:
        print(f"> {question}\n{said}")
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    record = {
        "sizes": asdict(sizes),
        "recipe": asdict(recipe),
        "training": done,
        "hardware": hardware,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "scores": scores.as_json(),
    }
    print(json.dumps(record["scores"], indent=2), flush=True)
    save(
        out,
        model,
        tokenizer,
        {
            "config.json": model.config(),
            "generation_config.json": GENERATION_CONFIG,
            "tokenizer_config.json": TOKENIZER_CONFIG,
            "training.json": record,
            "README.md": model_card(record, samples),
        },
    )
    return scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `turbosparse train`."""
    parser.add_argument("--data", type=Path, required=True, help="folder with the training text")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint directory to write")
    parser.add_argument("--minutes", type=float, default=Recipe().minutes)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int, default=Recipe().conversations)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-compile", action="store_true")


def run(arguments: argparse.Namespace) -> None:
    recipe = Recipe(
        minutes=arguments.minutes,
        seed=arguments.seed,
        conversations=arguments.conversations,
    )
    train(
        arguments.data,
        arguments.out,
        Sizes(),
        recipe,
        compile_model=not arguments.no_compile and torch.cuda.is_available(),
        processes=arguments.processes,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    run(parser.parse_args())
