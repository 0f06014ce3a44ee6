"""Tiny random checkpoints in the published layouts, and a straight forward pass to hold against.

The forward is written from the papers' equations and shares no code with the product: one sequence,
no cache, no paging, every weight as the checkpoint stores it.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

BASE = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
CONFIGS = {
    "turbosparse-mistral": {
        "model_type": "bamboo",
        "architectures": ["BambooForCausalLM"],
        "hidden_act": "relu",
        "sliding_window": 9,
        "eos_token_id": 2,
    },
    "bamboo": {
        "model_type": "bamboo",
        "architectures": ["BambooForCausalLM"],
        "hidden_act": "relu",
        "sliding_window": None,
    },
    "turbosparse-mixtral": {
        "model_type": "turbosparsemixtral",
        "architectures": ["TurboSparseMixtralForCausalLM"],
        "hidden_act": "relu",
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    },
    "mixtral": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_act": "silu",
        "sliding_window": None,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "prosparse": {
        "model_type": "sparsellama",
        "architectures": ["SparseLlamaForCausalLM"],
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.01,
        "num_key_value_heads": 6,
    },
    "sakana": {
        "model_type": "llama_sparse_relu",
        "architectures": ["SparseLlamaForCausalLM"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    },
    "minicpm-s": {
        "model_type": "minicpm",
        "architectures": ["MiniCPMForCausalLM"],
        "hidden_act": "fatrelu",
        "hidden_act_param": 0.03,
        "scale_emb": 12,
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "tie_word_embeddings": True,
    },
}
HAS_PREDICTOR = {"turbosparse-mistral", "turbosparse-mixtral"}


def config_of(name: str) -> dict:
    return BASE | CONFIGS[name]


def make_tensors(config: dict, *, predictor: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale / shape[-1] ** 0.5

    hidden, neurons = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    tensors = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden, scale=hidden**0.5),
        "model.norm.weight": 1 + random(hidden),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random(config["vocab_size"], hidden, scale=4)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        tensors[f"{layer}.input_layernorm.weight"] = 1 + random(hidden)
        tensors[f"{layer}.post_attention_layernorm.weight"] = 1 + random(hidden)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            tensors[f"{layer}.self_attn.{name}_proj.weight"] = random(rows, hidden, scale=2)
        experts = config.get("num_local_experts", 0)
        blocks = [f"{layer}.block_sparse_moe.experts.{e}" for e in range(experts)]
        names = ("w1", "w3", "w2") if experts else ("gate_proj", "up_proj", "down_proj")
        if experts:
            tensors[f"{layer}.block_sparse_moe.gate.weight"] = random(experts, hidden, scale=3)
        for block in blocks or [f"{layer}.mlp"]:
            gate, up, down = (f"{block}.{name}.weight" for name in names)
            tensors[gate], tensors[up] = random(neurons, hidden), random(neurons, hidden)
            tensors[down] = random(hidden, neurons, scale=4)
            if predictor:
                rank = 12 + i  # published ranks differ from layer to layer
                tensors[f"{block}.predictor.fc1.weight"] = random(rank, hidden)
                tensors[f"{block}.predictor.fc2.weight"] = random(neurons, rank) - 0.1
    return tensors


def save(directory: Path, config: dict, tensors: dict[str, torch.Tensor], shards: int = 1) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    names = sorted(tensors)
    files = {
        n: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, n in enumerate(names)
    }
    for file in set(files.values()):
        save_file({n: tensors[n].contiguous() for n in names if files[n] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return directory


def make(directory: Path, name: str, *, shards: int = 1, **changes: object) -> Path:
    config = config_of(name) | changes
    tensors = make_tensors(config, predictor=name in HAS_PREDICTOR)
    return save(directory, config, tensors, shards)


def straight_forward(
    config: dict, tensors: dict[str, torch.Tensor], ids: list[int]
) -> torch.Tensor:
    """Logits of every position: [T, vocab]. METHOD: residual r, x = rmsnorm(r),
    m = fc2(relu(fc1(r))) > 0, r + down(m * act(gate(x), up(x)))."""
    length, hidden = len(ids), config["hidden_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = hidden // heads
    minicpm = config["model_type"] == "minicpm"
    depth = config["scale_depth"] / config["num_hidden_layers"] ** 0.5 if minicpm else 1.0

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * tensors[name]

    def rope(x: torch.Tensor) -> torch.Tensor:  # [T, heads, dim], pairs (d, d + dim / 2) as complex
        speed = config["rope_theta"] ** (-torch.arange(0, dim, 2) / dim)
        turn = torch.polar(torch.ones(length, dim // 2), torch.outer(torch.arange(length), speed))
        pairs = torch.complex(x[..., : dim // 2], x[..., dim // 2 :]) * turn[:, None]
        return torch.cat((pairs.real, pairs.imag), -1)

    def attention(x: torch.Tensor, layer: str) -> torch.Tensor:
        q, k, v = (
            (x @ tensors[f"{layer}.self_attn.{n}_proj.weight"].T).view(length, -1, dim)
            for n in "qkv"
        )
        q, k = rope(q), rope(k)
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / dim**0.5
        distance = torch.arange(length)[:, None] - torch.arange(length)
        hidden_from = (distance < 0) | (distance >= (config.get("sliding_window") or length))
        weights = scores.masked_fill(hidden_from, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, v).reshape(length, hidden)
        return out @ tensors[f"{layer}.self_attn.o_proj.weight"].T

    def act(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        if config["model_type"] in ("bamboo", "turbosparsemixtral"):
            return gate.relu() * up.relu()
        if config["model_type"] == "mixtral":
            return F.silu(gate) * up
        if config["hidden_act"] == "fatrelu":
            return torch.where(gate < config["hidden_act_param"], 0, gate) * up
        return gate.relu() * up

    def ffn(
        r: torch.Tensor, x: torch.Tensor, block: str, names: tuple[str, str, str]
    ) -> torch.Tensor:
        gate, up, down = (tensors[f"{block}.{name}.weight"] for name in names)
        value = act(x @ gate.T, x @ up.T)
        if f"{block}.predictor.fc1.weight" in tensors:
            first = (r @ tensors[f"{block}.predictor.fc1.weight"].T).relu()
            value = (
                value * torch.sigmoid(first @ tensors[f"{block}.predictor.fc2.weight"].T).round()
            )
        return value @ down.T

    def moe(r: torch.Tensor, x: torch.Tensor, layer: str) -> torch.Tensor:
        routing = F.softmax(x @ tensors[f"{layer}.block_sparse_moe.gate.weight"].T, -1)
        out = torch.zeros_like(x)
        for t in range(length):
            best = routing[t].argsort(descending=True)[: config["num_experts_per_tok"]]
            for e in best:
                block = f"{layer}.block_sparse_moe.experts.{e}"
                y = ffn(r[t : t + 1], x[t : t + 1], block, ("w1", "w3", "w2"))[0]
                out[t] += routing[t, e] / routing[t, best].sum() * y
        return out

    r = tensors["model.embed_tokens.weight"][ids] * (config["scale_emb"] if minicpm else 1)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        r = r + depth * attention(norm(r, f"{layer}.input_layernorm.weight"), layer)
        x = norm(r, f"{layer}.post_attention_layernorm.weight")
        if "num_local_experts" in config:
            y = moe(r, x, layer)
        else:
            y = ffn(r, x, f"{layer}.mlp", ("gate_proj", "up_proj", "down_proj"))
        r = r + depth * y
    x = norm(r, "model.norm.weight")
    if minicpm:
        x = x / (hidden / config["dim_model_base"])
    tied = config["tie_word_embeddings"]
    return x @ tensors["model.embed_tokens.weight" if tied else "lm_head.weight"].T
