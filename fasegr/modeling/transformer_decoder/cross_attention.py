"""How a layer reads its level: which keys a query is given, and with which positional query it asks for them.

A read is called `read(layer, queries, query_pos, base, level, mask_logits, low_attention, low_size)`: the layer's
cross-attention; queries, the positional queries in force and B, (B, Q, C) each; the level; the newest masks on it,
(B, Q, n) logits; attention and size of the coarsest level, from this round. `make_layer` makes the cross-attention that
it calls. `uses_mask` and `reads_attention` say which of the last three it looks at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fasegr.modeling.transformer_decoder.attention import Attended, Attention, CrossAttentionLayer
from fasegr.modeling.transformer_decoder.feature_levels import Level, level_strides
from fasegr.modeling.transformer_decoder.hrca import Selection, Size, build_selection
from fasegr.modeling.transformer_decoder.rcda import RowColumnAttentionLayer


class MaskedRead:
    """A layer of the coarse levels: masked cross-attention with the positional query in force.

    threshold: a key is hidden from a query where the mask predicted before is less likely than this.
    """

    uses_mask = True
    reads_attention = False

    def __init__(self, threshold: float):
        if not 0 < threshold < 1:
            raise ValueError(f"MODEL.FASEG.MASK_THRESHOLD is {threshold}; it must lie between 0 and 1 (0.15 in FASeg)")
        self.logit = math.log(threshold / (1 - threshold))

    def make_layer(self, dim: int, num_heads: int, *, keeps_attention: bool) -> nn.Module:
        return CrossAttentionLayer(dim, num_heads, keeps_attention=keeps_attention)

    def __call__(
        self,
        layer: nn.Module,
        queries: Tensor,
        query_pos: Tensor,
        base: Tensor,
        level: Level,
        mask_logits: Tensor,
        low_attention: Attention | None,
        low_size: Size,
    ) -> Attended:
        hidden = mask_logits < self.logit  # sigmoid(x) < t
        hidden = hidden & ~hidden.all(-1, keepdim=True)  # a query that would see nothing sees everything
        return layer(queries, query_pos, level.tokens, level.key_pos, hidden.unsqueeze(1))


class SparseRead:
    """A layer of a high-resolution level: unmasked cross-attention at selected pixels.

    It hands out no attention. dynamic_query: attend with the positional query in force (paper) instead of B (release).
    """

    uses_mask = False

    def __init__(self, selection: Selection, *, dynamic_query: bool):
        self.selection = selection
        self.reads_attention = selection.reads_attention
        self.dynamic_query = dynamic_query

    def make_layer(self, dim: int, num_heads: int, *, keeps_attention: bool) -> nn.Module:
        return CrossAttentionLayer(dim, num_heads, keeps_attention=keeps_attention)

    def __call__(
        self,
        layer: nn.Module,
        queries: Tensor,
        query_pos: Tensor,
        base: Tensor,
        level: Level,
        mask_logits: Tensor | None,
        low_attention: Attention | None,
        low_size: Size,
    ) -> Attended:
        tokens, key_pos = level.tokens, level.key_pos
        pixels = self.selection.pixels(low_attention, low_size, level.size)
        if pixels is not None:
            # Indexed and not gathered, which would keep the whole map for the backward pass.
            image = torch.arange(len(pixels), device=pixels.device).unsqueeze(1)
            tokens, key_pos = tokens[image, pixels], key_pos[image, pixels]
        attended = layer(queries, query_pos if self.dynamic_query else base, tokens, key_pos, None)
        return attended._replace(pixels=pixels)


class RowColumnRead:
    """A layer of a high-resolution level: unmasked attention to all pixels, by rows and columns.

    It hands out no attention. dynamic_query: as `SparseRead`.
    """

    uses_mask = False
    reads_attention = False

    def __init__(self, *, dynamic_query: bool):
        self.dynamic_query = dynamic_query

    def make_layer(self, dim: int, num_heads: int, *, keeps_attention: bool) -> nn.Module:
        if keeps_attention:
            raise ValueError("attention by rows and columns hands out no weights; nothing may be made to read them")
        return RowColumnAttentionLayer(dim, num_heads)

    def __call__(
        self,
        layer: nn.Module,
        queries: Tensor,
        query_pos: Tensor,
        base: Tensor,
        level: Level,
        mask_logits: Tensor | None,
        low_attention: Attention | None,
        low_size: Size,
    ) -> Attended:
        tokens, key_pos = (x.unflatten(1, level.size) for x in (level.tokens, level.key_pos))
        return layer(queries, query_pos if self.dynamic_query else base, tokens, key_pos, None)


Read = MaskedRead | SparseRead | RowColumnRead


def build_reads(
    *, mask_threshold: float, attention: str, levels: Sequence[int], omega: int, selection: str, query: str
) -> list[Read]:
    """The reads of one round, coarse to fine: the high-resolution one at the strides `levels`, masked ones elsewhere.

    attention: "hrca", "random", "vanilla", "rcda" or "none". selection: of HRCA, "window" or "pixel".
    query: "static" or "dynamic".
    """
    masked = MaskedRead(mask_threshold)
    strides = level_strides(attention, levels)
    if attention == "none":
        return [masked] * len(strides)
    if query not in ("static", "dynamic"):
        raise ValueError(f"MODEL.FASEG.HIGH_RES.QUERY is {query!r}; choose static (release) or dynamic (paper)")
    if attention == "rcda":
        high_res: Read = RowColumnRead(dynamic_query=query == "dynamic")
    else:
        high_res = SparseRead(build_selection(attention, selection, omega), dynamic_query=query == "dynamic")
    return [high_res if stride in levels else masked for stride in strides]
