"""What the decoder's layers look at, handed out on request.

    with record_attention(model) as layers:
        model(inputs)
    layers[-1].attention  # (B, Q, n): the last layer's

While nobody records, the model is what it is without this file: no flag is read and no weight is kept. Within the block
the decoder's reads are wrapped by ones that do the same, and then ask each layer once more for the weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fasegr.modeling.transformer_decoder.decoder import MultiScaleMaskedTransformerDecoder

__all__ = ["LayerAttention", "record_attention"]


class LayerAttention(NamedTuple):
    """The cross-attention of one decoder layer. n = h * w are the pixels of its level, in rows.

    layer: counted from 0. size: (h, w) of the level.
    attention: (B, Q, n) weights averaged over heads, which sum to one over n; 0 where the layer does not look.
    pixels: (B, k) those that omega selects, None where the layer reads the whole level.
    query_pos: (B, Q, C) positional queries that the layer attends with. key_pos: (B, n, C) of its level.
    positional: (B, Q, n) the weights that positional queries and key positions alone would give: those of the layer if
    queries and pixels had no content and no pixel were masked. Where it is high, Q_p points.
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
            "attention is recorded of a model with one"
        )
    (decoder,) = decoders
    numbers = {layer: i for i, layer in enumerate(decoder.transformer_cross_attention_layers)}
    layers: list[LayerAttention] = []
    reads = decoder.reads
    decoder.reads = [_RecordedRead(read, numbers, layers) for read in reads]
    try:
        yield layers
    finally:
        decoder.reads = reads


class _RecordedRead:
    """Reads as `read` does, and keeps a record of it in `layers`. numbers: {layer: its number}."""

    def __init__(self, read, numbers: dict[nn.Module, int], layers: list[LayerAttention]):
        self.read = read
        self.numbers = numbers
        self.layers = layers

    def __getattr__(self, name: str):
        return getattr(self.read, name)

    def __call__(self, layer, queries, query_pos, base, level, *rest):
        watched = _Watched(layer)
        attended = self.read(watched, queries, query_pos, base, level, *rest)
        attention, positional = watched.weights()
        if attended.pixels is not None:
            n = level.tokens.shape[1]
            attention, positional = (_scattered(weights, attended.pixels, n) for weights in (attention, positional))
        self.layers.append(
            LayerAttention(
                layer=self.numbers[layer],
                size=level.size,
                attention=attention,
                pixels=attended.pixels,
                query_pos=watched.arguments[1].detach(),
                key_pos=level.key_pos.detach(),
                positional=positional,
            )
        )
        return attended


class _Watched:
    """Calls `layer` and remembers with what."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, *arguments):
        self.arguments = arguments
        return self.layer(*arguments)

    @torch.no_grad()
    def weights(self) -> tuple[Tensor, Tensor]:
        """`attention` and `positional` of `LayerAttention`, over the keys that the layer was given."""
        queries, query_pos, tokens, key_pos, hidden = self.arguments
        empty = torch.zeros_like(queries), query_pos, torch.zeros_like(tokens), key_pos, None
        return self.layer.weights(queries, query_pos, tokens, key_pos, hidden), self.layer.weights(*empty)


def _scattered(weights: Tensor, pixels: Tensor, n: int) -> Tensor:
    """(B, Q, k) weights of the selected pixels (B, k) to (B, Q, n), 0 elsewhere."""
    whole = weights.new_zeros(*weights.shape[:2], n)
    return whole.scatter_(2, pixels.unsqueeze(1).expand_as(weights), weights)
