"""Multi-head attention, the sub-layers that all decoder layers share (self-attention, feed-forward network; post-norm),
and the input and output of cross-attention, whose kinds are in `cross_attention.py` and `rcda.py`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.layers import Linear
from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with the parameter names of `nn.MultiheadAttention`, batch first."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide the {dim} channels of attention")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        self._in_proj = ops.KeptWeights()
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, Q, C), (B, n, C), (B, n, C) to (B, M, Q, D), (B, M, n, D), (B, M, n, D)."""
        weight, bias = map(ops.for_products, self._in_proj(_both, self.in_proj_weight, self.in_proj_bias))
        dim = query.shape[-1]
        if query is key:  # one product for both
            inputs, sizes = (query, value), (2 * dim, dim)
        else:
            inputs, sizes = (query, key, value), (dim, dim, dim)
        products = [F.linear(x, w, b) for x, w, b in zip(inputs, weight.split(sizes), bias.split(sizes), strict=True)]
        parts = [part for product in products for part in product.split(dim, dim=-1)]
        return tuple(part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)

    def merge(self, heads: Tensor) -> Tensor:
        """(B, M, Q, D) to (B, Q, C)."""
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, Q, C), by fused attention. attn_mask: bool, broadcast to (B, M, Q, n), True where a key is attended (the
        convention of `F.scaled_dot_product_attention`)."""
        q, k, v = self.project(query, key, value)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask))

    def with_weights(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same result, and the weights averaged over heads, (B, Q, n). attn_mask: (B, 1, Q, n), no row False."""
        q, k, v = self.project(query, key, value)
        scores = (q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2)
        if attn_mask is not None:
            # added, not filled in: the mask is the same for all heads, and an in-place sum makes no copy
            scores += attn_mask.log()  # 0 where a key is attended, -inf elsewhere
        # a softmax over thousands of keys needs float32
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return self.merge(weights.to(v.dtype) @ v), weights.mean(1)


def _both(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return weight, bias


class SelfAttentionLayer(nn.Module):
    """Queries attend to one another: self-attention, residual, norm."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, query_pos: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """attn_mask: as in `MultiheadAttention`, (B, 1, Q, Q)."""
        with_pos = queries + query_pos
        return self.norm(queries + self.self_attn(with_pos, with_pos, queries, attn_mask))


class FFNLayer(nn.Module):
    """Linear, ReLU, linear, residual, norm."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.linear1 = Linear(dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def forward(self, queries: Tensor) -> Tensor:
        return self.norm(queries + self.linear2(F.relu(self.linear1(queries))))


class CrossAttentionContext(NamedTuple):
    """Inputs of a layer's cross-attention besides the queries.

    level: the map to attend to. query_pos: (B, Q, C), the current positional queries. query_embed: (B, Q, C), B of
    eq. 2. mask_logits: (B, Q, n), the latest masks on this level; None if the layer uses no mask.
    coarse_attention: (B, Q, m), of this round's coarsest layer, None if it is not needed; coarse_size: (h, w) of its
    level. need_weights: whether the attention of this layer is used later.
    """

    level: FeatureLevel
    query_pos: Tensor
    query_embed: Tensor
    mask_logits: Tensor | None
    coarse_attention: Tensor | None
    coarse_size: tuple[int, int]
    need_weights: bool


class CrossAttentionOutput(NamedTuple):
    """queries: (B, Q, C). attention: (B, Q, n), averaged over heads, if it is needed and this kind returns it.
    pixels: (B, k) indices of the attended pixels, None for the whole level."""

    queries: Tensor
    attention: Tensor | None = None
    pixels: Tensor | None = None
