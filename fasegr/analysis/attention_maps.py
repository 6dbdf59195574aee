"""What the decoder's layers attend to.

    with record_attention(model) as layers:
        model(inputs)
    layers[-1].attention  # (B, Q, n): the last layer's

Within the block, forward hooks on the cross-attention modules ask each of them for its weights. Outside of it there are
no hooks, and nothing is computed or kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext, CrossAttentionOutput
from fasegr.modeling.transformer_decoder.decoder import MultiScaleMaskedTransformerDecoder

__all__ = ["LayerAttention", "record_attention"]


class LayerAttention(NamedTuple):
    """The cross-attention of one decoder layer. n = h * w are the pixels of its level, row by row.

    layer: counted from 0. size: (h, w) of the level.
    attention: (B, Q, n) weights averaged over heads, which sum to one over n; 0 where the layer does not attend.
    pixels: (B, k) those that omega selects, None where the layer attends to the whole level.
    query_pos: (B, Q, C) positional queries that the layer attends with. key_pos: (B, n, C) of its level.
    positional: (B, Q, n) the weights that positional queries and key positions would give without content: those of the
    layer if queries and pixels were zero and no pixel were masked. Where it is high, Q_p points.
    """

    layer: int
    size: tuple[int, int]
    attention: Tensor
    pixels: Tensor | None
    query_pos: Tensor
    key_pos: Tensor
    positional: Tensor


@contextmanager
def record_attention(model: nn.Module) -> Iterator[list[LayerAttention]]:
    """Collect the attention of all decoder layers that run inside the block, in their order.

    model: a segmentor, or any module that holds one decoder. What is recorded has no gradient. Raises ValueError for a
    model without a decoder, or with several.
    """
    decoders = [module for module in model.modules() if isinstance(module, MultiScaleMaskedTransformerDecoder)]
    if len(decoders) != 1:
        raise ValueError(
            f"the model ({type(model).__name__}) holds {len(decoders)} transformer decoders; "
            "attention is recorded from a model with one"
        )
    layers: list[LayerAttention] = []
    with ExitStack() as hooks:
        for number, layer in enumerate(decoders[0].transformer_cross_attention_layers):
            hooks.enter_context(layer.register_forward_hook(partial(_record, layers, number)))
        yield layers


@torch.no_grad()
def _record(
    layers: list[LayerAttention],
    number: int,
    layer: nn.Module,
    arguments: tuple[Tensor, CrossAttentionContext],
    output: CrossAttentionOutput,
) -> None:
    """A forward hook of one cross-attention layer."""
    queries, context = arguments
    level, pixels = context.level, output.pixels
    no_content = level._replace(memory=torch.zeros_like(level.memory), key=level.key_pos)
    no_content = context._replace(level=no_content, mask_logits=None)
    attention = layer.attention_map(queries, context, pixels)
    positional = layer.attention_map(torch.zeros_like(queries), no_content, pixels)
    if pixels is not None:
        n = level.memory.shape[1]
        attention, positional = (_on_whole_level(weights, pixels, n) for weights in (attention, positional))
    query_pos, key_pos = layer.query_pos(context).detach(), level.key_pos.detach()
    layers.append(LayerAttention(number, level.size, attention, pixels, query_pos, key_pos, positional))


def _on_whole_level(weights: Tensor, pixels: Tensor, n: int) -> Tensor:
    """(B, Q, k) weights of the selected pixels (B, k) to (B, Q, n), 0 elsewhere."""
    whole = weights.new_zeros(*weights.shape[:2], n)
    return whole.scatter_(2, pixels.unsqueeze(1).expand_as(weights), weights)
