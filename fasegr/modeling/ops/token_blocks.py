"""A layer of the deformable encoder, a block of tokens at a time.

Once the values of all tokens are in the table that is sampled, what a token becomes depends on no other token:

    t <- norm1(t + output_proj(sample(values, points(t + position))))
    t <- norm2(t + linear2(relu(linear1(t))))

The whole layer makes a dozen tensors as large as all tokens, the widest of which has four times their channels. For a
block of tokens these stay in the cache, and their memory serves the next block; what is new for each layer are its
values and its result. On a CPU the cost of fresh memory is what this saves: the kernel hands it out page by page.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.deformable_attention import ValueTable

BLOCK = 2048
"""Tokens of a block: the 1024 channels of the feed-forward network then take 8 MB in float32."""


def supports(tokens: Tensor, encoder: nn.Module) -> bool:
    """Whether `encoder_layer` is to be used: in inference on the CPU, of more than one block, in full precision."""
    return (
        fast_paths.in_cpu_inference(tokens)
        and not torch.is_grad_enabled()  # the layers have parameters
        and tokens.shape[1] > BLOCK
        and not encoder.training
        and fast_paths.in_full_precision(tokens)
        and fast_paths.enabled("embedding_bag")
        and fast_paths.enabled("token_blocks")
    )


def encoder_layer(
    layer: nn.Module, tokens: Tensor, position: Tensor, shapes: Sequence[tuple[int, int]], reference: Tensor
) -> Tensor:
    """`layer(tokens, position, shapes, reference)` of an `EncoderLayer` in evaluation mode."""
    attention = layer.self_attn
    projection = attention.points_projection()
    out = torch.empty_like(tokens)
    for image in range(len(tokens)):
        this = slice(image, image + 1)
        table = ValueTable(attention.values(tokens[this]), shapes)
        for start in range(0, tokens.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            t = tokens[this, block]
            points = attention.points(t + position[this, block], reference[:, block], *projection)
            t = layer.norm1(attention.output_proj(table.sample(*points)).add_(t))
            out[this, block] = layer.norm2(layer.linear2(F.relu_(layer.linear1(t))).add_(t))
    return out
