import pytest
import torch

from fasegr.modeling.transformer_decoder.attention import CrossAttentionContext
from fasegr.modeling.transformer_decoder.cross_attention import (
    MaskedCrossAttention,
    SparseCrossAttention,
    build_cross_attention,
)
from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel
from fasegr.modeling.transformer_decoder.hrca import AllPixels, TopPixels
from fasegr.modeling.transformer_decoder.rcda import RowColumnCrossAttention

DEFAULTS = {"mask_threshold": 0.15, "omega": 32, "selection": "window", "query": "static"}
KINDS = {"M": MaskedCrossAttention, "S": SparseCrossAttention, "R": RowColumnCrossAttention}


@pytest.mark.parametrize(
    ("attention", "levels", "kinds"),
    [("hrca", [4], "MMMS"), ("vanilla", [8], "MMS"), ("random", [4, 8], "MMSS"), ("rcda", [4, 8], "MMRR"),
     ("none", [4], "MMM")],
)  # fmt: skip
def test_kinds_of_a_round(attention, levels, kinds):
    layers = [make(8, 2) for make in build_cross_attention(attention=attention, levels=levels, **DEFAULTS)]
    assert [type(layer) for layer in layers] == [KINDS[kind] for kind in kinds]
    assert [layer.uses_mask for layer in layers] == [kind == "M" for kind in kinds]


def case(mask_logits=None, need_weights=False, coarse=(2, 3), fine=(4, 6)):
    torch.manual_seed(0)
    queries, query_pos, query_embed = torch.randn(3, 2, 5, 8, dtype=torch.float64)
    memory, key_pos = torch.randn(2, 2, fine[0] * fine[1], 8, dtype=torch.float64)
    attention = torch.rand(2, 5, coarse[0] * coarse[1], dtype=torch.float64)
    level = FeatureLevel(memory, key_pos, fine, memory + key_pos)
    return queries, CrossAttentionContext(level, query_pos, query_embed, mask_logits, attention, coarse, need_weights)


def test_masked_attention_stays_within_the_mask():
    mask_logits = torch.full((2, 5, 24), -9.0)
    mask_logits[:, :4, :7] = 9.0  # the mask of the last query is empty: it attends everywhere
    layer = MaskedCrossAttention(8, 2, mask_threshold=0.5).double()
    queries, context = case(mask_logits)
    weights = layer.attention_map(queries, context)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=torch.float64))
    assert not weights[:, :4, 7:].any() and weights[:, 4].all()


def test_weights_are_returned_where_they_are_needed():
    layer = MaskedCrossAttention(8, 2, mask_threshold=0.5).double()
    mask_logits = torch.randn(2, 5, 24)
    queries, context = case(mask_logits)
    fused, with_weights = layer(queries, context), layer(queries, context._replace(need_weights=True))
    torch.testing.assert_close(fused.queries, with_weights.queries)
    assert fused.attention is None
    torch.testing.assert_close(with_weights.attention, layer.attention_map(queries, context))


@pytest.mark.parametrize("dynamic_query", [False, True])
def test_sparse_attention_reads_the_selected_pixels(dynamic_query):
    layer = SparseCrossAttention(8, 2, selection=TopPixels(6), dynamic_query=dynamic_query).double()
    queries, context = case()
    out = layer(queries, context)
    assert out.pixels.shape == (2, 4) and out.attention is None
    assert layer.attention_map(queries, context, out.pixels).shape == (2, 5, 4)
    other = torch.ones(2, 24, 1, dtype=torch.float64)
    other[torch.arange(2)[:, None], out.pixels] = 0.0  # only the selected pixels matter
    level = context.level._replace(memory=context.level.memory + 5 * other)
    torch.testing.assert_close(layer(queries, context._replace(level=level)).queries, out.queries)
    changed = context._replace(**{"query_embed" if dynamic_query else "query_pos": torch.zeros_like(queries)})
    torch.testing.assert_close(layer(queries, changed).queries, out.queries)


def test_vanilla_attention_reads_the_whole_level():
    layer = SparseCrossAttention(8, 2, selection=AllPixels(), dynamic_query=True).double()
    queries, context = case()
    assert layer(queries, context).pixels is None
    assert layer.attention_map(queries, context, None).shape == (2, 5, 24)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match=f"mask_threshold is {threshold}"):
        MaskedCrossAttention(8, 2, mask_threshold=threshold)
