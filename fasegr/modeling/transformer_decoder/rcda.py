"""Row-column decoupled attention (RCDA): a query attends to columns and to rows, and so to the pixels where they cross.

Source: Wang et al., "Anchor DETR: Query design for transformer-based detector", AAAI 2022; the paper's table 6
compares it with HRCA. The weight of pixel (y, x) is a(y) b(x), with a from keys averaged over each row and b from keys
averaged over each column. With n = h w pixels, scores are Q (h + w) instead of Q n numbers. Values are still projected
at every pixel, as in Anchor DETR, so it costs more operations than HRCA.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext, CrossAttentionOutput


class RowColumnAttention(nn.Module):
    """Multi-head attention whose weights are products of weights over columns and weights over rows.

    Query and key have one projection for each axis, which extracts x or y from a position: Anchor DETR encodes x and y
    separately, while a positional query of FASeg is one vector. That makes five projections where `MultiheadAttention`
    has three, 0.13 M more parameters at 256 channels.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; it must divide the {dim} channels of attention")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(5 * dim, dim))  # query for x, for y; key for x, for y; value
        self.in_proj_bias = nn.Parameter(torch.zeros(5 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def weights(self, query: Tensor, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """query: (B, Q, C). columns: (B, w, C), keys averaged over each column. rows: (B, h, C), over each row.

        Returns (B, M, Q, w) and (B, M, Q, h), which sum to one.
        """
        query_x, query_y, key_x, key_y = (self._project(x, i) for i, x in enumerate((query, query, columns, rows)))
        return _softmax(query_x, key_x), _softmax(query_y, key_y)

    def forward(self, query: Tensor, columns: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        """values: (B, h, w, C); the others as for `weights`. Returns (B, Q, C)."""
        over_x, over_y = self.weights(query, columns, rows)
        values = self._project(values.flatten(1, 2), 4).unflatten(2, values.shape[1:3])  # (B, M, h, w, D)
        heads = ops.row_column_sum(over_x.to(values.dtype), over_y.to(values.dtype), values)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, which: int) -> Tensor:
        """(B, n, C) to (B, M, n, D)."""
        weight, bias = self.in_proj_weight.chunk(5)[which], self.in_proj_bias.chunk(5)[which]
        return F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class RowColumnCrossAttention(nn.Module):
    """Unmasked attention to all pixels of a level, by rows and columns; residual, norm.

    It returns no weights and uses no mask: a mask of pixels is not a product of rows and columns.
    dynamic_query: attend with the current positional query (paper) instead of `query_embed` (release).
    """

    uses_mask = False
    reads_attention = False

    def __init__(self, dim: int, num_heads: int, *, dynamic_query: bool):
        super().__init__()
        self.multihead_attn = RowColumnAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.dynamic_query = dynamic_query

    def forward(self, queries: Tensor, context: CrossAttentionContext) -> CrossAttentionOutput:
        values = context.level.memory.unflatten(1, context.level.size)
        out = self.multihead_attn(*self._query_and_keys(queries, context), values)
        return CrossAttentionOutput(self.norm(queries + out))

    def _query_and_keys(self, queries: Tensor, context: CrossAttentionContext) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, Q, C), keys averaged over each column (B, w, C) and over each row (B, h, C)."""
        level = context.level
        memory, key_pos = (x.unflatten(1, level.size) for x in (level.memory, level.key_pos))
        # averages of projected keys are projections of averaged keys
        return queries + self.query_pos(context), memory.mean(1) + key_pos.mean(1), memory.mean(2) + key_pos.mean(2)

    def query_pos(self, context: CrossAttentionContext) -> Tensor:
        return context.query_pos if self.dynamic_query else context.query_embed

    def attention_map(self, queries: Tensor, context: CrossAttentionContext, pixels: None = None) -> Tensor:
        over_x, over_y = self.multihead_attn.weights(*self._query_and_keys(queries, context))
        return torch.einsum("bmqy,bmqx->bqyx", over_y, over_x).flatten(2) / over_x.shape[1]


def _softmax(query: Tensor, key: Tensor) -> Tensor:
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
