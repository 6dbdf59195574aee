"""The Triton kernels against grid_sample: on a GPU if there is one, else in the interpreter (tests/conftest.py)."""

import pytest
import torch

from fasegr.modeling.ops import triton_deformable_attention as triton_deform_attn
from fasegr.modeling.ops.deformable_attention import sample_by_grid
from fasegr.modeling.ops.triton_deformable_attention import sample_by_triton, supports

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(3, 5), (6, 4), (1, 16)]


def case(dtype=torch.float64, shapes=SHAPES, batch=2, queries=5, heads=3, dim=16, points=2, grad=False):
    """value, x, y and weight; points are from two pixels outside on the left to two on the right."""
    generator = torch.Generator().manual_seed(dim + queries)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, generator=generator, dtype=dtype)
    shape = (batch, queries, heads, len(shapes), points)
    size = torch.tensor(shapes, dtype=dtype)[:, :, None]
    y, x = (torch.rand(shape, generator=generator, dtype=dtype) * (size[:, i] + 4) - 2 for i in (0, 1))
    weight = torch.rand(shape, generator=generator, dtype=dtype)
    return tuple(t.to(DEVICE).requires_grad_(grad) for t in (value, x, y, weight))


def gradients(form, inputs, shapes=SHAPES):
    out = form(inputs[0], shapes, *inputs[1:])
    weights = torch.linspace(-1, 1, out[0].numel(), dtype=torch.float64, device=DEVICE).view(out.shape[1:])
    (out * weights).sum().backward()
    grads = [t.grad for t in inputs]
    for t in inputs:
        t.grad = None
    return [out.detach(), *grads]


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dim", [16, 24, 32, 100, 128])
def test_any_head_width(dim):
    value, x, y, weight = case(torch.float32, dim=dim)
    torch.testing.assert_close(
        sample_by_triton(value, SHAPES, x, y, weight), sample_by_grid(value, SHAPES, x, y, weight), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("shapes", "batch", "queries", "heads", "points"),
    [([(4, 4)], 1, 1, 1, 1), ([(2, 3), (1, 1), (32, 16), (7, 1)], 1, 3, 8, 3), (SHAPES, 3, 70, 2, 4)],
)
def test_any_number_of_levels_points_and_rows(shapes, batch, queries, heads, points):
    sizes = {"shapes": shapes, "batch": batch, "queries": queries, "heads": heads, "points": points}
    value, x, y, weight = case(**sizes)
    torch.testing.assert_close(
        sample_by_triton(value, shapes, x, y, weight), sample_by_grid(value, shapes, x, y, weight)
    )


def test_points_far_outside_read_zero_and_those_on_the_border_half_a_pixel():
    value, x, y, weight = case()
    far = sample_by_triton(value, SHAPES, torch.full_like(x, 1e20), torch.full_like(y, -1e20), weight)
    assert far.abs().max() == 0
    for level, (h, w) in enumerate(SHAPES):
        x[..., level, 0], y[..., level, 0] = w, h  # the outer corner of the last pixel
        x[..., level, 1], y[..., level, 1] = 0.5, h - 0.5  # the centres of the first column and of the last row
    torch.testing.assert_close(
        sample_by_triton(value, SHAPES, x, y, weight), sample_by_grid(value, SHAPES, x, y, weight)
    )


def test_gradients():
    inputs = case(grad=True, dim=20)
    for one, other in zip(gradients(sample_by_triton, inputs), gradients(sample_by_grid, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_that_are_summed_in_order(deterministic):
    inputs = case(grad=True, dim=20, batch=1, queries=12)
    with torch.no_grad():
        inputs[1][0] = 1.25  # so that all rows of an image sample the same pixels
        inputs[2][0] = 0.75
    first, again = (gradients(sample_by_triton, inputs) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    for one, other, reference in zip(first, again, gradients(sample_by_grid, inputs), strict=True):
        assert one.equal(other)
        torch.testing.assert_close(one, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_values_are_summed_in_float32(dtype):
    inputs = case(grad=True, dim=32)
    exact = gradients(sample_by_grid, inputs)
    value, x, y, weight = (t.detach().to(torch.float32) for t in inputs)
    lower = [t.requires_grad_() for t in (value.to(dtype), x, y, weight)]
    found = gradients(sample_by_triton, lower)
    assert found[0].dtype == found[1].dtype == dtype
    assert {grad.dtype for grad in found[2:]} == {torch.float32}
    error = 4 * torch.finfo(dtype).eps  # from rounding each value and the result; sums in half precision would add more
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, atol=error * other.abs().max().item(), rtol=error)


def test_nan_positions_do_not_leave_the_values():
    value, x, y, weight = case()
    x[0, 0, 0, 0, 0] = float("nan")
    assert sample_by_triton(value, SHAPES, x, y, weight).isfinite().all()
    weight[0, 0, 0, 0, 0] = float("nan")
    assert sample_by_triton(value, SHAPES, x, y, weight)[0, 0].isnan().any()


def test_no_query_and_no_image():
    value, x, y, weight = case(grad=True)
    for empty in (slice(0, 0), slice(None)):
        inputs = [value[empty], *(t[empty, :0] for t in (x, y, weight))]
        out = sample_by_triton(inputs[0], SHAPES, *inputs[1:])
        assert out.shape == (len(inputs[0]), 0, 48)
        out.sum().backward()
    assert value.grad.abs().max() == 0


def test_compiles_without_graph_breaks():
    inputs = case(grad=True)
    compiled = torch.compile(
        lambda *t: sample_by_triton(t[0], SHAPES, *t[1:]), fullgraph=True, backend="aot_eager", dynamic=False
    )
    plain = gradients(sample_by_grid, inputs)
    for one, other in zip(
        gradients(lambda value, shapes, *t: compiled(value, *t), inputs),
        plain,
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_what_is_supported(monkeypatch):
    asked = []
    monkeypatch.setattr(triton_deform_attn, "has_triton", lambda index, dtype: asked.append(dtype) or True)
    assert not supports(torch.empty(1, 4, 2, 32), 3)
    with torch._subclasses.FakeTensorMode():
        assert not asked
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert supports(torch.empty(1, 4, 2, 32, dtype=dtype, device="cuda"), 3)
        for dim, answer in ((8, False), (16, True), (100, True), (128, True), (129, False)):
            assert supports(torch.empty(1, 4, 2, dim, device="cuda"), 3) is answer
        for levels, answer in ((1, True), (4, True), (5, False)):
            assert supports(torch.empty(1, 4, 2, 32, device="cuda"), levels) is answer
        assert not supports(torch.empty(1, 2**23, 8, 32, device="cuda"), 3)
    monkeypatch.setattr(triton_deform_attn, "has_triton", lambda index, dtype: False)
    with torch._subclasses.FakeTensorMode():
        assert not supports(torch.empty(1, 4, 2, 32, device="cuda"), 3)
