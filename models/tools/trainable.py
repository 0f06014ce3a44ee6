"""TurboSparse-Mistral as a trainable module: stated plainly, named as published."""
# pyright: basic

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Activation
from .corpus import BOS, EOS
from .mlp import MLP
from .paging import PagedStep


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bundled model's shape: 14.8 M parameters, 30 MB in bf16."""

    vocab: int = 4096
    hidden: int = 384
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    neurons: int = 1024
    rank: int = 96  # of the predictors; 0 for none
    context: int = 8192  # positions
    theta: float = 100_000.0
    eps: float = 1e-5
    activation: Activation = Activation.DRELU


Output = tuple[Tensor, Tensor]


class LayerCache:
    """Keys and values of a batch whose rows have each a length of their own."""

    def __init__(self, rows: int, s: Sizes, length: int, like: Tensor) -> None:
        shape = (rows, s.kv_heads, length, s.hidden // s.heads)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)

    def begin(self, k: Tensor, v: Tensor) -> None:
        """Rows that begin together; what stands behind a row's own end is overwritten later."""
        self.k[:, :, : k.shape[2]], self.v[:, :, : v.shape[2]] = k, v

    def extend(self, k: Tensor, v: Tensor, at: Tensor) -> Tensor:
        """One more token in each row, at its place `at` [rows]; the mask to attend with."""
        rows = torch.arange(len(at), device=at.device)
        self.k[rows, :, at], self.v[rows, :, at] = k[:, :, 0], v[:, :, 0]
        places = torch.arange(self.k.shape[2], device=at.device)
        return (places <= at[:, None])[:, None, None]


class Attention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = s.heads, s.kv_heads, s.hidden // s.heads
        self.q_proj = nn.Linear(s.hidden, s.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(s.heads * self.dim, s.hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        turn: Output,
        cache: LayerCache | None = None,
        at: Tensor | None = None,
        paged: tuple[PagedStep, int] | None = None,  # and which layer this is
    ) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.heads, self.dim).transpose(1, 2)
        k = self.k_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, self.kv_heads, self.dim).transpose(1, 2)
        q, k = rotate(q, *turn), rotate(k, *turn)
        if paged is not None:
            step, layer = paged
            out = step.attend(layer, q, k, v)
            return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        mask = None
        if cache is not None and at is not None:
            mask = cache.extend(k, v, at)
            k, v = cache.k, cache.v
        elif cache is not None:
            cache.begin(k, v)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
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

    def forward(
        self,
        r: Tensor,
        turn: Output,
        masked: bool | Tensor,
        positive_weight: float,
        cache: LayerCache | None,
        at: Tensor | None,
        paged: tuple[PagedStep, int] | None,
    ) -> Output:
        r = r + self.self_attn(self.input_layernorm(r), turn, cache, at, paged)
        inputs = (self.post_attention_layernorm(r), r, masked, positive_weight)
        if paged is None:
            y, sparsity = self.mlp(*inputs)
        else:  # not compiled: gigabytes a layer would be kept for the backward pass
            y, sparsity = checkpoint(self.mlp, *inputs, use_reentrant=False)
        return r + y, sparsity


class TurboSparse(nn.Module):
    """[batch, length] token ids -> [batch, length, vocab] logits; embeddings are tied.

    With a rank of zero it is one of the twins: SwiGLU, or ReLU on the gate, without a predictor.
    """

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

    def forward(
        self,
        ids: Tensor,
        masked: bool | Tensor = True,
        positive_weight: float = 1.0,
        caches: list[LayerCache] | None = None,
        at: Tensor | None = None,
        paged: PagedStep | None = None,
    ) -> Output:
        """Logits, and the layers' [imitation, kept, lost]: [layers, 3].

        `masked` for all rows, or for each in [batch, 1, 1]. With `at` each row is one token
        long and stands at that place of its row in the caches. A `paged` step has no caches.
        """
        places = slice(ids.shape[1]) if at is None else at[:, None, None]
        turn = self.cos[places], self.sin[places]
        r = self.embed_tokens(ids)
        sparsity = []
        for i, layer in enumerate(self.layers):
            cache = caches[i] if caches else None
            reading = None if paged is None else (paged, i)
            r, of_layer = layer(r, turn, masked, positive_weight, cache, at, reading)
            sparsity.append(of_layer)
        return F.linear(self.norm(r), self.embed_tokens.weight), torch.stack(sparsity)

    def published(self) -> dict[str, Tensor]:
        """The weights under their published names, in bf16."""
        return {
            f"model.{name}": parameter.detach().to("cpu", torch.bfloat16).contiguous()
            for name, parameter in self.named_parameters()
        }

    def config(self) -> dict[str, object]:
        """config.json as the published checkpoints have it; the twins' is a Llama's."""
        s = self.sizes
        own = s.activation is Activation.DRELU
        return {
            "architectures": ["BambooForCausalLM" if own else "LlamaForCausalLM"],
            "model_type": "bamboo" if own else "llama",
            "hidden_act": "relu" if own else s.activation.value,
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
