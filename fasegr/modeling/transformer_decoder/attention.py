"""The three sub-layers of a decoder layer: cross-attention, self-attention, feed-forward network. All are post-norm."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling.ops import heads_in_turn
from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.linear import linear
from fasegr.modeling.transformer_decoder.triton_cross_attention import FusedAttention, attend_by_triton, supports


class AttentionWeights:
    """The attention of one layer, as others read it. weights: (B, Q, n), averaged over heads."""

    def __init__(self, weights: Tensor):
        self.weights = weights

    def pool(self, key_pos: Tensor) -> Tensor:
        """A K_p (eq. 2): key_pos (B, n, C) to (B, Q, C), where each query looked."""
        return self.weights.to(key_pos.dtype) @ key_pos

    def sum_over_queries(self) -> Tensor:
        """(B, n): what all queries together give to a key."""
        return self.weights.sum(1)


Attention = AttentionWeights | FusedAttention


class Attended(NamedTuple):
    """queries: (B, Q, C). attention: of n keys, None where nobody reads it.

    pixels: (B, n) indices of the keys in their level where they are a selection of it, None where they are all of it.
    """

    queries: Tensor
    attention: Attention | None
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
            linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
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

    def with_attention(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None) -> Attended:
        """The same result, and the attention averaged over heads. hidden: (B, 1, Q, n), no row all True."""
        q, k, v = self.project(query, key, value)
        if supports(q, k, v) and fast_paths.enabled("triton_cross_attention"):
            heads, attention = attend_by_triton(q, k, v, hidden)
        elif heads_in_turn.supports(q, k, v):
            heads, mean = heads_in_turn.attend(q, k, v, hidden)
            attention = AttentionWeights(mean)
        else:
            weights = _weights(q, k, hidden)
            heads, attention = weights.to(v.dtype) @ v, AttentionWeights(weights.mean(1))
        return Attended(self.merge(heads), attention)

    def weights(self, query: Tensor, key: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(B, Q, n) attention weights averaged over heads."""
        q, k, _ = self.project(query, key, key)
        return _weights(q, k, hidden).mean(1)


def _weights(q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
    """(B, M, Q, D), (B, M, n, D) to (B, M, Q, n) in float32 at least."""
    scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
    if hidden is not None:
        # added rather than filled in: what is hidden is the same for all heads, and a sum is not a copy
        scores += torch.zeros_like(hidden, dtype=scores.dtype).masked_fill_(hidden, float("-inf"))
    # statistics of a softmax over thousands of keys need float32
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class CrossAttentionLayer(nn.Module):
    """Queries read an image: cross-attention, residual, norm.

    keeps_attention: whether the attention is handed out; without it `scaled_dot_product_attention` fuses all.
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
            out, attention, _ = self.multihead_attn.with_attention(*args)
        else:
            out, attention = self.multihead_attn(*args), None
        return Attended(self.norm(queries + out), attention)

    def weights(
        self, queries: Tensor, query_pos: Tensor, tokens: Tensor, key_pos: Tensor, hidden: Tensor | None
    ) -> Tensor:
        """(B, Q, n) weights that `forward` attends with, averaged over heads: for looking at, not for computing on."""
        return self.multihead_attn.weights(queries + query_pos, tokens + key_pos, hidden)


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
