"""All forms of the sampling against a loop over corners, and their gradients."""

import pytest
import torch

from fasegr.modeling.ops.deformable_attention import (
    deformable_attention,
    sample_by_bag,
    sample_by_gather,
    sample_by_grid,
)

SHAPES = [(3, 5), (6, 4), (1, 2)]


def slow(value, shapes, x, y, weight):
    """Point by point: four corners, zero outside."""
    batch, queries, heads, _, points = x.shape
    out = value.new_zeros(batch, queries, heads, value.shape[-1])
    start = 0
    for level, (h, w) in enumerate(shapes):
        grid = value[:, start : start + h * w].view(batch, h, w, heads, -1)
        start += h * w
        for b in range(batch):
            for q in range(queries):
                for m in range(heads):
                    for p in range(points):
                        px, py = x[b, q, m, level, p] - 0.5, y[b, q, m, level, p] - 0.5
                        for row in (py.floor().int(), py.floor().int() + 1):
                            for col in (px.floor().int(), px.floor().int() + 1):
                                if 0 <= row < h and 0 <= col < w:
                                    share = (1 - (px - col).abs()) * (1 - (py - row).abs())
                                    out[b, q, m] += weight[b, q, m, level, p] * share * grid[b, row, col, m]
    return out.flatten(2)


def case(dtype=torch.float64, batch=2, queries=4, heads=2, dim=3, points=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(batch, tokens, heads, dim, generator=generator, dtype=dtype)
    shape = (batch, queries, heads, len(SHAPES), points)
    # from two pixels outside on the left to two on the right
    width = torch.tensor([w for _, w in SHAPES], dtype=dtype).view(-1, 1)
    height = torch.tensor([h for h, _ in SHAPES], dtype=dtype).view(-1, 1)
    x = torch.rand(shape, generator=generator, dtype=dtype) * (width + 4) - 2
    y = torch.rand(shape, generator=generator, dtype=dtype) * (height + 4) - 2
    weight = torch.rand(shape, generator=generator, dtype=dtype)
    return value, x, y, weight


@pytest.mark.parametrize("form", [sample_by_bag, sample_by_gather, sample_by_grid, deformable_attention])
def test_equals_the_loop_over_corners(form):
    value, x, y, weight = case()
    torch.testing.assert_close(form(value, SHAPES, x, y, weight), slow(value, SHAPES, x, y, weight))


@pytest.mark.parametrize("form", [sample_by_bag, sample_by_gather, sample_by_grid])
def test_points_far_outside_and_on_the_border_read_zero_or_the_border(form):
    value, x, y, weight = case()
    x, y = torch.full_like(x, 1e6), torch.full_like(y, -1e6)
    assert form(value, SHAPES, x, y, weight).abs().max() == 0
    for level, (h, w) in enumerate(SHAPES):
        x[..., level, :], y[..., level, :] = w - 0.5, h - 0.5  # the centre of the last pixel
    torch.testing.assert_close(form(value, SHAPES, x, y, weight), slow(value, SHAPES, x, y, weight))


def test_gradients_of_the_bag():
    value, x, y, weight = case(batch=1, queries=3)
    inputs = [t.requires_grad_() for t in (value, x, y, weight)]
    assert torch.autograd.gradcheck(lambda *t: sample_by_bag(t[0], SHAPES, *t[1:]), inputs)


def test_gradients_agree_between_forms():
    grads = []
    for form in (sample_by_bag, sample_by_grid):
        inputs = [t.requires_grad_() for t in case(queries=7, heads=4, dim=8)]
        (form(inputs[0], SHAPES, *inputs[1:]) * torch.linspace(-1, 1, 32, dtype=torch.float64)).sum().backward()
        grads.append([t.grad for t in inputs])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype):
    value, x, y, weight = case(queries=9)
    exact = sample_by_bag(value, SHAPES, x, y, weight)
    out = sample_by_bag(value.to(dtype), SHAPES, x.float(), y.float(), weight.float())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [sample_by_bag, sample_by_grid])
def test_positions_in_half_precision_are_used_as_they_are(form, dtype, autocast):
    """Results and gradients are those of float64 for the same positions, on a wide level, but for one rounding."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 200)]
    value = torch.randn(1, 800, 2, 8, generator=generator)
    y, x = (torch.rand(1, 30, 2, 1, 2, generator=generator) * (side + 2) - 1 for side in shapes[0])
    # On the centres of pixels, where these positions often lie, there is no gradient; the outer corners are none.
    y, x = (torch.where((t.to(dtype) - 0.5) % 1 == 0, t.floor(), t) for t in (y, x))
    weight = torch.rand(1, 30, 2, 1, 2, generator=generator)
    found, exact = [], []
    for results, precision in ((found, dtype), (exact, torch.float64)):
        inputs = [t.to(dtype).to(precision).requires_grad_() for t in (value, x, y, weight)]
        with torch.autocast("cpu", dtype, enabled=autocast):
            out = form(inputs[0], shapes, *inputs[1:])
        assert out.dtype == precision
        results += [out, *torch.autograd.grad(out.sum(), inputs)]
    for one, other in zip(found, exact, strict=True):
        error = torch.finfo(dtype).eps * other.abs().max().item()
        torch.testing.assert_close(one.double(), other, rtol=0, atol=error)


def test_nan_positions_do_not_leave_the_table():
    value, x, y, weight = case()
    x[0, 0, 0, 0, 0] = float("nan")
    assert deformable_attention(value, SHAPES, x, y, weight).isfinite().all()
    weight[0, 0, 0, 0, 0] = float("nan")
    assert deformable_attention(value, SHAPES, x, y, weight)[0, 0].isnan().any()


def test_level_sizes_must_fit_the_tokens():
    value, x, y, weight = case()
    with pytest.raises(ValueError, match="41 tokens"):
        deformable_attention(value, [(3, 5), (6, 4), (1, 3)], x, y, weight)


def test_compiles_without_graph_breaks():
    value, x, y, weight = case()
    compiled = torch.compile(lambda *t: deformable_attention(t[0], SHAPES, *t[1:]), fullgraph=True, backend="aot_eager")
    inputs = [t.requires_grad_() for t in (value, x, y, weight)]
    out = compiled(*inputs)
    torch.testing.assert_close(out, slow(value, SHAPES, x, y, weight))
    out.sum().backward()
    assert all(t.grad is not None for t in inputs)
