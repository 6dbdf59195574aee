"""Positional queries against slow references: one query, one pixel at a time, in float64."""

import math

import pytest
import torch
from torch import nn

from fasegr.modeling.transformer_decoder.feature_levels import FeatureLevel
from fasegr.modeling.transformer_decoder.positional_query import (
    ConstantQuery,
    DynamicAnchorQuery,
    DynamicFocusAwareQuery,
    DynamicForegroundQuery,
    GridAnchors,
    PositionalQueryContext,
)

BATCH, QUERIES, DIM = 2, 4, 8
ATTENDED, UPCOMING = (2, 5), (3, 4)
ALL = {
    "constant": lambda h: ConstantQuery(),
    "dfpq": lambda h: DynamicFocusAwareQuery(h, region="background"),
    "anchor": DynamicAnchorQuery,
    "foreground": DynamicForegroundQuery,
}


def h():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM)).double()


def level(size):
    n = size[0] * size[1]
    tokens, key_pos = torch.randn(2, BATCH, n, DIM, dtype=torch.float64)
    return FeatureLevel(tokens, key_pos, size)


def inputs():
    """B and the context; the mask of one query is empty, that of another covers everything."""
    torch.manual_seed(1)
    base = torch.randn(BATCH, QUERIES, DIM, dtype=torch.float64)
    attended, upcoming = level(ATTENDED), level(UPCOMING)
    attention = torch.rand(BATCH, QUERIES, 10, dtype=torch.float64).softmax(-1)
    logits = torch.randn(BATCH, QUERIES, 12, dtype=torch.float64)
    logits[0, 1], logits[1, 2] = -9.0, 9.0
    return base, PositionalQueryContext(attention, attended, logits, upcoming)


def code(y, x):
    """DETR's sinusoidal code of a point, y first, channel by channel."""
    half = DIM // 2
    channels = []
    for place in (y, x):
        for c in range(half):
            angle = 2 * math.pi * place / 10000.0 ** (2 * (c // 2) / half)
            channels.append(math.sin(angle) if c % 2 == 0 else math.cos(angle))
    return torch.tensor(channels, dtype=torch.float64)


def test_dfpq_is_the_outer_product_summed_over_keys():
    base, context = inputs()
    project = h()
    expected = project((context.attention.unsqueeze(-1) * context.level.key_pos.unsqueeze(1)).sum(2) + base)
    query = DynamicFocusAwareQuery(project, region="background")
    torch.testing.assert_close(query.update(torch.zeros_like(base), base, context), expected)


def test_dfpq_stays_after_a_layer_without_attention():
    base, context = inputs()
    in_force = torch.randn_like(base)
    query = DynamicFocusAwareQuery(h(), region="background")
    assert query.update(in_force, base, context._replace(attention=None)) is in_force


@pytest.mark.parametrize("region", ["background", "foreground"])
def test_first_query_of_dfpq_pools_over_its_region(region):
    base, context = inputs()
    probability = context.mask_logits.sigmoid()
    inside = probability < 0.5 if region == "background" else probability >= 0.5
    expected = torch.zeros_like(base)
    for b in range(BATCH):
        for q in range(QUERIES):
            expected[b, q] = context.next_level.key_pos[b][inside[b, q]].sum(0) / (inside[b, q].sum() + 1e-6)
    project = h()
    query = DynamicFocusAwareQuery(project, region=region)
    torch.testing.assert_close(query.first(base, context), project(expected + base))


@pytest.mark.parametrize("method", ["first", "update"])
def test_dynamic_foreground_pools_over_the_newest_mask(method):
    base, context = inputs()
    expected = torch.zeros_like(base)
    for b in range(BATCH):
        for q in range(QUERIES):
            pixels = [p for p in range(12) if context.mask_logits[b, q, p] >= 0]
            if pixels:
                expected[b, q] = context.next_level.key_pos[b, pixels].mean(0)
    project = h()
    query = DynamicForegroundQuery(project)
    made = query.first(base, context) if method == "first" else query.update(torch.zeros_like(base), base, context)
    torch.testing.assert_close(made, project(expected + base), atol=1e-5, rtol=1e-5)  # divides by count + 1e-6
    torch.testing.assert_close(made[0, 1], project(base[0, 1]))  # its mask is empty


@pytest.mark.parametrize("method", ["first", "update"])
def test_dynamic_anchor_is_the_code_of_the_centre_of_the_newest_mask(method):
    base, context = inputs()
    rows, columns = UPCOMING
    expected = torch.zeros_like(base)
    for b in range(BATCH):
        for q in range(QUERIES):
            pixels = [(p // columns, p % columns) for p in range(rows * columns) if context.mask_logits[b, q, p] >= 0]
            if pixels:
                y = sum((y + 0.5) / rows for y, _ in pixels) / len(pixels)
                x = sum((x + 0.5) / columns for _, x in pixels) / len(pixels)
                expected[b, q] = code(y, x)
    project = h()
    query = DynamicAnchorQuery(project)
    made = query.first(base, context) if method == "first" else query.update(torch.zeros_like(base), base, context)
    torch.testing.assert_close(made, project(expected + base))
    torch.testing.assert_close(made[0, 1], project(base[0, 1]))  # its mask is empty
    torch.testing.assert_close(made[1, 2], project(code(0.5, 0.5) + base[1, 2]))  # its mask covers the image


def test_an_anchor_is_the_same_on_every_level():
    torch.manual_seed(0)
    coarse = torch.randn(BATCH, QUERIES, 3, 4, dtype=torch.float64)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    base, query = torch.randn(BATCH, QUERIES, DIM, dtype=torch.float64), DynamicAnchorQuery(h())
    made = [
        query.first(base, PositionalQueryContext(None, None, masks.flatten(2), level(tuple(masks.shape[2:]))))
        for masks in (coarse, fine)
    ]
    torch.testing.assert_close(*made)


@pytest.mark.parametrize("query", [DynamicAnchorQuery, DynamicForegroundQuery])
def test_mask_queries_stay_the_same_without_a_mask(query):
    base, context = inputs()
    in_force = torch.randn_like(base)
    assert query(h()).update(in_force, base, context._replace(mask_logits=None)) is in_force


def test_half_precision_does_not_overflow_with_many_pixels():
    size = (256, 320)
    logits = torch.ones(1, 1, size[0] * size[1], dtype=torch.float16)
    key_pos = torch.full((1, size[0] * size[1], DIM), 3.0, dtype=torch.float16)
    context = PositionalQueryContext(None, None, logits, FeatureLevel(key_pos, key_pos, size))
    base = torch.zeros(1, 1, DIM, dtype=torch.float16)
    torch.testing.assert_close(DynamicForegroundQuery(nn.Identity()).first(base, context), base + 3, atol=0.02, rtol=0)
    anchor = DynamicAnchorQuery(nn.Identity()).first(base, context)
    torch.testing.assert_close(anchor[0, 0].double(), code(0.5, 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_gradients(name):
    base, context = inputs()

    def both(base, weights, attended, upcoming):
        query = ALL[name](project)
        what = PositionalQueryContext(weights, context.level._replace(key_pos=attended), context.mask_logits,
                    context.next_level._replace(key_pos=upcoming))  # fmt: skip
        return query.first(base, what), query.update(base, base, what)

    project = h()
    arguments = (base, context.attention, context.level.key_pos, context.next_level.key_pos)
    assert torch.autograd.gradcheck(both, tuple(t.clone().requires_grad_() for t in arguments))


def test_constant_query_is_the_base():
    base, context = inputs()
    assert ConstantQuery().first(base, context) is base
    assert ConstantQuery().update(torch.zeros_like(base), base, context) is base


@pytest.mark.parametrize(
    ("queries", "rows"), [(1, [1]), (2, [2]), (5, [3, 2]), (6, [3, 3]), (7, [3, 2, 2]), (9, [3] * 3), (100, [10] * 10)]
)
def test_grid_anchors_cover_the_image_evenly(queries, rows):
    anchors = GridAnchors(queries, DIM).double()
    expected = [
        ((i + 0.5) / len(rows), (j + 0.5) / count) for i, count in enumerate(rows) for j in range(count)
    ]  # y, x
    points = anchors.points(torch.float64, torch.device("cpu"))
    torch.testing.assert_close(points, torch.tensor(expected, dtype=torch.float64))
    codes = torch.stack([code(y, x) for y, x in expected])
    torch.testing.assert_close(anchors.weight, anchors.h(codes))


@pytest.mark.parametrize("queries", range(1, 60))
def test_any_number_of_grid_anchors_are_that_many_different_points(queries):
    points = GridAnchors(queries, DIM).points(torch.float64, torch.device("cpu"))
    assert points.shape == (len(points.unique(dim=0)), 2) == (queries, 2)
    assert ((points > 0) & (points < 1)).all()


def test_grid_anchors_only_learn_their_projection():
    anchors = GridAnchors(6, DIM).double()
    assert {name for name, _ in anchors.named_parameters()} == {"h.0.weight", "h.0.bias", "h.2.weight", "h.2.bias"}
    assert torch.autograd.gradcheck(lambda *_: anchors.weight, tuple(anchors.parameters()))


def test_unknown_region():
    with pytest.raises(ValueError, match=r"'sky'.*background.*foreground"):
        DynamicFocusAwareQuery(h(), region="sky")
