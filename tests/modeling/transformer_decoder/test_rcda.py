"""Row-column decoupled attention against one weight per query, head and pixel, in float64."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext
from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel
from fasegr.modeling.transformer_decoder.rcda import RowColumnAttention, RowColumnCrossAttention

BATCH, QUERIES, DIM, HEADS = 2, 3, 8, 2


def inputs(height, width, queries=QUERIES):
    torch.manual_seed(1)
    queries, query_pos = torch.randn(2, BATCH, queries, DIM, dtype=torch.float64)
    tokens, key_pos = torch.randn(2, BATCH, height, width, DIM, dtype=torch.float64)
    return queries, query_pos, tokens, key_pos


def layer():
    torch.manual_seed(0)
    module = RowColumnCrossAttention(DIM, HEADS, dynamic_query=True).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def call(function, queries, query_pos, tokens, key_pos, **more):
    """`function(queries, context)` of a layer; tokens, key_pos: (B, h, w, C)."""
    level = FeatureLevel(tokens.flatten(1, 2), key_pos.flatten(1, 2), tuple(tokens.shape[1:3]))
    context = CrossAttentionContext(level, query_pos, torch.zeros_like(query_pos), None, None, (1, 1), False)
    return function(queries, context, **more)


def slow(made, queries, query_pos, tokens, key_pos):
    """The layer's result (B, Q, C), and its weights (B, Q, h, w); keys are projected first, then averaged."""
    attention = made.multihead_attn
    weights, biases = attention.in_proj_weight.chunk(5), attention.in_proj_bias.chunk(5)
    placed, keys = queries + query_pos, tokens + key_pos
    query_x, query_y, key_x, key_y, value = (
        x @ w.t() + b for x, w, b in zip((placed, placed, keys, keys, tokens), weights, biases, strict=True)
    )
    key_x, key_y = key_x.mean(1), key_y.mean(2)
    head = DIM // HEADS
    results, means = torch.zeros_like(queries), torch.zeros(BATCH, QUERIES, *tokens.shape[1:3], dtype=torch.float64)
    for b in range(BATCH):
        for q in range(QUERIES):
            for m in range(HEADS):
                part = slice(m * head, (m + 1) * head)
                over_x = (key_x[b, :, part] @ query_x[b, q, part] / math.sqrt(head)).softmax(0)
                over_y = (key_y[b, :, part] @ query_y[b, q, part] / math.sqrt(head)).softmax(0)
                crossing = torch.outer(over_y, over_x)
                results[b, q, part] = (crossing[..., None] * value[b, ..., part]).sum((0, 1))
                means[b, q] += crossing / HEADS
    return made.norm(queries + attention.out_proj(results)), means


@pytest.mark.parametrize("size", [(4, 5), (6, 2), (1, 1), (1, 7)])
def test_equals_a_weight_for_each_pixel(size):
    made, arguments = layer(), inputs(*size)
    expected, weights = slow(made, *arguments)
    attended = call(made, *arguments)
    torch.testing.assert_close(attended.queries, expected)
    assert attended.attention is None
    torch.testing.assert_close(call(made.attention_map, *arguments), weights.flatten(2))


@pytest.mark.parametrize("size", [(2, 3), (3, 2)])
def test_gradients(size):
    made = layer()
    arguments = tuple(t.clone().requires_grad_() for t in inputs(*size))
    assert torch.autograd.gradcheck(lambda *args: call(made, *args).queries, arguments, fast_mode=True)
    parameters = tuple(made.parameters())
    assert torch.autograd.gradcheck(lambda *_: call(made, *arguments).queries, parameters, fast_mode=True)


class _Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that is created."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("size", [(16, 24), (24, 16)])
def test_no_tensor_has_queries_and_pixels(size):
    made, arguments = layer(), inputs(*size, queries=20)
    with _Largest() as largest:
        call(made, *arguments)
    assert largest.elements == BATCH * size[0] * size[1] * DIM  # the values, less than queries x pixels


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="num_heads is 3; it must divide the 8 channels"):
        RowColumnAttention(8, 3)
