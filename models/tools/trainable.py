"""TurboSparse-Mistral as a trainable module: stated plainly, named as published."""
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Activation
from .corpus import BOS, EOS
from .mlp import MLP


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bundled model's shape: 11.6 M parameters, 23 MB in bf16."""

    vocab: int = 4096
    hidden: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    neurons: int = 1024
    rank: int = 64
    context: int = 1024
    theta: float = 10000.0
    eps: float = 1e-5
    activation: Activation = Activation.DRELU


Output = tuple[Tensor, Tensor]


class Attention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = s.heads, s.kv_heads, s.hidden // s.heads
        self.q_proj = nn.Linear(s.hidden, s.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(s.heads * self.dim, s.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(s.hidden, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = nn.RMSNorm(s.hidden, s.eps)
        self.mlp = MLP(s.hidden, s.neurons, s.rank, s.activation)

    def forward(self, r: Tensor, cos: Tensor, sin: Tensor, masked: bool, target: float) -> Output:
        r = r + self.self_attn(self.input_layernorm(r), cos, sin)
        y, sparsity = self.mlp(self.post_attention_layernorm(r), r, masked, target)
        return r + y, sparsity


class TurboSparse(nn.Module):
    """[batch, length] token ids -> [batch, length, vocab] logits; embeddings are tied."""

    cos: Tensor  # [context, D / 2]
    sin: Tensor

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.sizes = s
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(Layer(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.hidden, s.eps)
        dim = s.hidden // s.heads
        speed = s.theta ** (-torch.arange(0, dim, 2).float() / dim)
        angle = torch.outer(torch.arange(s.context).float(), speed)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02)
                if into_residual:
                    parameter.data /= (2 * s.layers) ** 0.5

    def forward(self, ids: Tensor, masked: bool = True, target: float = 0.0) -> Output:
        """Logits, and the layers' [imitation, excess, kept share]: [layers, 3]."""
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        r = self.embed_tokens(ids)
        sparsity = []
        for layer in self.layers:
            r, of_layer = layer(r, cos, sin, masked, target)
            sparsity.append(of_layer)
        return F.linear(self.norm(r), self.embed_tokens.weight), torch.stack(sparsity)

    def published(self) -> dict[str, Tensor]:
        """The weights under their published names, in bf16."""
        return {
            f"model.{name}": parameter.detach().to("cpu", torch.bfloat16).contiguous()
            for name, parameter in self.named_parameters()
        }

    def config(self) -> dict[str, object]:
        """config.json as the published checkpoints have it."""
        s = self.sizes
        return {
            "architectures": ["BambooForCausalLM"],
            "model_type": "bamboo",
            "hidden_act": "relu",
            "hidden_size": s.hidden,
            "intermediate_size": s.neurons,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "vocab_size": s.vocab,
            "max_position_embeddings": s.context,
            "sliding_window": None,
            "rms_norm_eps": s.eps,
            "rope_theta": s.theta,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        }
