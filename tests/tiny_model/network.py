"""llama.cpp's `llama` architecture in PyTorch, its tensors named as in a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    vocabulary: int = 1024
    context: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 352
    epsilon: float = 1e-5
    rope_base: float = 10000.0

    @property
    def head(self) -> int:
        return self.width // self.heads


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
        self.attn_norm = _norm(shape)
        self.attn_q = nn.Linear(shape.width, queries, bias=False)
        self.attn_k = nn.Linear(shape.width, keys, bias=False)
        self.attn_v = nn.Linear(shape.width, keys, bias=False)
        self.attn_output = nn.Linear(queries, shape.width, bias=False)
        self.ffn_norm = _norm(shape)
        self.ffn_gate = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        states = states + self._attention(self.attn_norm(states), cosines, sines)
        return states + self._feed_forward(self.ffn_norm(states))

    def _attention(self, states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        queries = _rotated(self._heads(self.attn_q(states)), cosines, sines)
        keys = _rotated(self._heads(self.attn_k(states)), cosines, sines)
        values = self._heads(self.attn_v(states))
        # Query head h reads key/value head h // group, as llama.cpp does.
        group = self.shape.heads // self.shape.kv_heads
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.attn_output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.shape.head)).transpose(1, 2)

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.ffn_down(functional.silu(self.ffn_gate(states)) * self.ffn_up(states))


class Network(nn.Module):
    """Its output and input embeddings are tied: the file has no `output.weight`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = _norm(shape)
        angles = _angles(shape)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)
        for name, weights in self.named_parameters():
            if weights.dim() == 2:
                nn.init.normal_(weights, 0, _spread(name, weights.shape[1]))

    def forward(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Logits at the positions marked as wanted: nothing is learned from the others."""
        states = self.token_embd(ids)
        length = ids.shape[1]
        for block in self.blk:
            states = block(states, self.cosines[:length], self.sines[:length])
        return self.output_norm(states[wanted]) @ self.token_embd.weight.T


def _norm(shape: Shape) -> nn.RMSNorm:
    return nn.RMSNorm(shape.width, eps=shape.epsilon)


def _angles(shape: Shape) -> Tensor:
    exponents = torch.arange(0, shape.head, 2).float() / shape.head
    return torch.outer(torch.arange(shape.context).float(), shape.rope_base**-exponents)


def _rotated(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    # Pairs of neighbours, as the `llama` architecture has them: nothing to permute at export.
    even, odd = states[..., 0::2], states[..., 1::2]
    pairs = (even * cosines - odd * sines, even * sines + odd * cosines)
    return torch.stack(pairs, -1).flatten(-2)


def _spread(name: str, inputs: int) -> float:
    if "embd" in name:
        return 0.02
    # What is added to the residual stream starts smaller.
    return inputs**-0.5 * (0.5 if "output" in name or "down" in name else 1)
