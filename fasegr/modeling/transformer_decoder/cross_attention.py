"""Cross-attention of the queries to one level, a module for each kind: masked, sparse (HRCA), row-column (`rcda.py`).

All are called as `layer(queries, context)` and return a `CrossAttentionOutput`. Each kind has

- `uses_mask`, whether it uses `context.mask_logits`, and `reads_attention`, whether `context.coarse_attention`;
- `query_pos(context)`, the positional query that it attends with;
- `attention_map(queries, context, pixels)`, its attention weights (B, Q, n), averaged over heads: for figures,
  whether or not the model needs the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fasegr.modeling.transformer_decoder.attention import (
    CrossAttentionContext,
    CrossAttentionOutput,
    MultiheadAttention,
)
from fasegr.modeling.transformer_decoder.feature_levels import level_strides
from fasegr.modeling.transformer_decoder.hrca import Selection, build_selection
from fasegr.modeling.transformer_decoder.rcda import RowColumnCrossAttention


class _CrossAttention(nn.Module):
    """Multi-head attention to a level, residual, norm."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)


class MaskedCrossAttention(_CrossAttention):
    """Masked attention of Mask2Former: a query attends within its latest predicted mask.

    mask_threshold: keys are masked where the mask probability is below it. A query whose whole mask is below it
    attends everywhere.
    """

    uses_mask = True
    reads_attention = False

    def __init__(self, dim: int, num_heads: int, *, mask_threshold: float):
        super().__init__(dim, num_heads)
        if not 0 < mask_threshold < 1:
            raise ValueError(f"mask_threshold is {mask_threshold}; it must be between 0 and 1 (0.15 in FASeg)")
        self.mask_threshold_logit = math.log(mask_threshold / (1 - mask_threshold))

    def forward(self, queries: Tensor, context: CrossAttentionContext) -> CrossAttentionOutput:
        level, attention = context.level, None
        query = queries + self.query_pos(context)
        arguments = (query, level.key, level.memory, self._attn_mask(context))
        if context.need_weights:
            out, attention = self.multihead_attn.with_weights(*arguments)
        else:
            out = self.multihead_attn(*arguments)
        return CrossAttentionOutput(self.norm(queries + out), attention)

    def query_pos(self, context: CrossAttentionContext) -> Tensor:
        return context.query_pos

    def _attn_mask(self, context: CrossAttentionContext) -> Tensor | None:
        """(B, 1, Q, n) bool, True where a key is attended."""
        if context.mask_logits is None:
            return None
        inside = context.mask_logits >= self.mask_threshold_logit  # sigmoid(x) >= t
        return (inside >= inside.any(-1, keepdim=True)).unsqueeze(1)  # all, where none is inside

    def attention_map(self, queries: Tensor, context: CrossAttentionContext, pixels: None = None) -> Tensor:
        query, key = queries + self.query_pos(context), context.level.key
        return self.multihead_attn.with_weights(query, key, key, self._attn_mask(context))[1]


class SparseCrossAttention(_CrossAttention):
    """Unmasked attention to selected pixels of a high-resolution level (HRCA, and vanilla: all pixels).

    dynamic_query: attend with the current positional query (paper) instead of `query_embed` (release).
    """

    uses_mask = False

    def __init__(self, dim: int, num_heads: int, *, selection: Selection, dynamic_query: bool):
        super().__init__(dim, num_heads)
        self.selection = selection
        self.reads_attention = selection.reads_attention
        self.dynamic_query = dynamic_query

    def forward(self, queries: Tensor, context: CrossAttentionContext) -> CrossAttentionOutput:
        pixels = self.selection(context)
        query, key, value = self._query_key_value(queries, context, pixels)
        out = self.multihead_attn(query, key, value)
        return CrossAttentionOutput(self.norm(queries + out), pixels=pixels)

    def _query_key_value(
        self, queries: Tensor, context: CrossAttentionContext, pixels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        memory, key_pos = context.level.memory, context.level.key_pos
        if pixels is not None:
            # Indexed, since gather would keep the whole map for the backward pass.
            image = torch.arange(pixels.shape[0], device=pixels.device).unsqueeze(1)
            memory, key_pos = memory[image, pixels], key_pos[image, pixels]
        return queries + self.query_pos(context), memory + key_pos, memory

    def query_pos(self, context: CrossAttentionContext) -> Tensor:
        return context.query_pos if self.dynamic_query else context.query_embed

    def attention_map(self, queries: Tensor, context: CrossAttentionContext, pixels: Tensor | None) -> Tensor:
        return self.multihead_attn.with_weights(*self._query_key_value(queries, context, pixels))[1]


def build_cross_attention(
    *, mask_threshold: float, attention: str, levels: Sequence[int], omega: int, selection: str, query: str
) -> list[Callable[[int, int], nn.Module]]:
    """The cross-attention of each layer of one round, coarse to fine, as functions (dim, num_heads) -> module.

    attention: of the high-resolution levels, "hrca", "random", "vanilla", "rcda" or "none"; levels: their strides. The
    others have masked attention. selection: of HRCA, "window" or "pixel". query: "static" or "dynamic".
    """
    masked = partial(MaskedCrossAttention, mask_threshold=mask_threshold)
    strides = level_strides(attention, levels)
    if attention == "none":
        return [masked] * len(strides)
    if query not in ("static", "dynamic"):
        raise ValueError(f"high_res_query is {query!r}; choose static (release) or dynamic (paper)")
    dynamic = query == "dynamic"
    if attention == "rcda":
        high_res = partial(RowColumnCrossAttention, dynamic_query=dynamic)
    else:
        chosen = build_selection(attention, selection, omega)
        high_res = partial(SparseCrossAttention, selection=chosen, dynamic_query=dynamic)
    return [high_res if stride in levels else masked for stride in strides]
