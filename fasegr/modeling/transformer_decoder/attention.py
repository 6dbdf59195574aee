"""The three sub-layers of a decoder layer: cross-attention, self-attention, feed-forward network. All are post-norm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attended(NamedTuple):
    """queries: (B, Q, C). attention: (B, Q, n) weights averaged over heads, None where nobody reads them.

    pixels: (B, n) indices of the keys in their level where they are a selection of it, None where they are all of it.
    """

    queries: Tensor
    attention: Tensor | None
    pixels: Tensor | None = None


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with the parameter names of `nn.MultiheadAttention`, batch first."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the {dim} channels of attention")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Q, C), (B, n, C), (B, n, C) to (B, M, Q, D), (B, M, n, D), (B, M, n, D)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        return tuple(
            F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )

    def merge(self, heads: Tensor) -> Tensor:
        """(B, M, Q, D) to (B, Q, C)."""
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Fused attention, without weights. hidden: bool, broadcast to (B, M, Q, n), True where a key is not seen."""
        q, k, v = self.project(query, key, value)
        seen = None if hidden is None else ~hidden
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))

    def with_weights(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Attended:
        """The same result, and the attention weights averaged over heads."""
        q, k, v = self.project(query, key, value)
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
        if hidden is not None:
            scores = scores.masked_fill(hidden, float("-inf"))
        # statistics of a softmax over thousands of keys need float32
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return Attended(self.merge(weights.to(v.dtype) @ v), weights.mean(1))


class CrossAttentionLayer(nn.Module):
    """Queries read an image: cross-attention, residual, norm.

    keeps_attention: whether the weights are handed out; without it the attention is fused.
    """

    def __init__(self, dim: int, num_heads: int, *, keeps_attention: bool):
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.keeps_attention = keeps_attention

    def forward(
        self, queries: Tensor, query_pos: Tensor, tokens: Tensor, key_pos: Tensor, hidden: Tensor | None
    ) -> Attended:
        """queries, query_pos: (B, Q, C). tokens, key_pos: (B, n, C). hidden: (B, 1, Q, n) bool, True: not attended."""
        args = (queries + query_pos, tokens + key_pos, tokens, hidden)
        if self.keeps_attention:
            out, attention, _ = self.multihead_attn.with_weights(*args)
        else:
            out, attention = self.multihead_attn(*args), None
        return Attended(self.norm(queries + out), attention)

    def weights(
        self, queries: Tensor, query_pos: Tensor, tokens: Tensor, key_pos: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """(B, Q, n) weights that `forward` attends with, averaged over heads: for looking at, not for computing on."""
        return self.multihead_attn.with_weights(queries + query_pos, tokens + key_pos, tokens, hidden).attention


class SelfAttentionLayer(nn.Module):
    """Queries read one another: self-attention, residual, norm."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, query_pos: Tensor) -> Tensor:
        placed = queries + query_pos
        return self.norm(queries + self.self_attn(placed, placed, queries))


class FFNLayer(nn.Module):
    """Linear, ReLU, linear, residual, norm."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))
