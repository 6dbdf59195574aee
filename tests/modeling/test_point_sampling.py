"""Sampling against grid_sample, and against arithmetic by hand."""

import pytest
import torch
import torch.nn.functional as F

from fasegr.modeling.point_sampling import (
    ACCELERATOR_BLOCK,
    CPU_BLOCK,
    TableSampler,
    at_least_float32,
    layers_at_once,
    point_sampler,
    random_points,
    sample_points,
    uncertain_points,
)

SIZES = [(3, 5, 7), (1, 1, 1), (4, 1, 6), (2, 8, 3), (0, 4, 4)]


def points_everywhere(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Inside, on the border, a little outside and far outside."""
    coords = torch.rand(count, 2, dtype=dtype) * 1.6 - 0.3
    corners = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0], [0.5, 0.5], [-50, 0.5], [50, 50]], dtype=dtype)
    return torch.cat((coords, corners))


def each_by_itself(maps, coords):
    """One map and one point at a time."""
    grid = (2 * coords - 1)[None, None]
    samples = [F.grid_sample(m[None, None], grid, align_corners=False).flatten() for m in maps]
    return torch.stack(samples) if samples else maps.new_zeros(0, len(coords))


@pytest.mark.parametrize("sampler", [sample_points, lambda maps, coords: TableSampler(coords, *maps.shape[1:])(maps)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_samples_and_gradient(sampler, dtype, size):
    torch.manual_seed(0)
    maps = torch.randn(size, dtype=dtype, requires_grad=True)
    coords = points_everywhere(40, dtype)
    samples, expected = sampler(maps, coords), each_by_itself(maps, coords)
    torch.testing.assert_close(samples, expected)
    upstream = torch.randn_like(samples)
    if len(maps):
        (expected_grad,) = torch.autograd.grad(expected, maps, upstream)
        torch.testing.assert_close(torch.autograd.grad(samples, maps, upstream), (expected_grad,))
    else:  # nothing to sample is still part of the graph
        assert torch.autograd.grad(samples.sum(), maps)[0].shape == size


def test_gradcheck():
    torch.manual_seed(1)
    sampler = TableSampler(points_everywhere(9, torch.float64), 3, 4)
    assert torch.autograd.gradcheck(sampler, torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True))


def test_values_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    coords = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.75, 0.5], [0.0, 0.25]])  # centre, middle, edge, half outside
    expected = torch.tensor([[1.0, 2.5, 3.0, 0.5]])
    torch.testing.assert_close(sample_points(maps, coords), expected)
    torch.testing.assert_close(TableSampler(coords, 2, 2)(maps), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_bool_maps_are_ones_and_zeros(dtype, size):
    torch.manual_seed(2)
    masks = torch.rand(size) > 0.5
    coords = points_everywhere(40, dtype)
    expected = each_by_itself(masks.to(dtype), coords)
    torch.testing.assert_close(TableSampler(coords, *size[1:])(masks), expected)
    torch.testing.assert_close(point_sampler(coords, *size[1:])(masks), expected)


def test_bool_maps_are_not_converted_whole(monkeypatch):
    """Neither to a table of floating point nor by a copy: the float path is never entered."""
    monkeypatch.setattr(TableSampler, "sample", None)
    assert TableSampler(torch.rand(5, 2), 6, 6)(torch.ones(2, 6, 6, dtype=torch.bool)).shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_sampled_in_the_precision_of_the_points(dtype):
    torch.manual_seed(3)
    maps = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    coords = torch.rand(30, 2)
    samples = point_sampler(coords, 5, 6)(maps)
    torch.testing.assert_close(samples, each_by_itself(maps.float(), coords))
    assert torch.autograd.grad(samples.sum(), maps)[0].dtype == dtype


def test_float64_uses_the_plain_form():
    assert isinstance(point_sampler(torch.rand(3, 2), 4, 4), TableSampler)
    maps, coords = torch.randn(2, 4, 4, dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64)
    assert torch.equal(point_sampler(coords, 4, 4)(maps), sample_points(maps, coords))


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5, 4\).*\(N, 4, 5\)"):
        TableSampler(torch.rand(3, 2), 4, 5)(torch.zeros(2, 5, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_uncertain_points_are_those_nearest_to_zero(dtype, count):
    torch.manual_seed(4)
    logits = torch.randn(3, 20, dtype=dtype, requires_grad=True)
    chosen = uncertain_points(logits, count)
    assert chosen.shape == (3, count) and chosen.dtype == torch.int64
    expected = logits.abs().argsort(dim=1)[:, :count]
    torch.testing.assert_close(chosen.sort(dim=1).values, expected.sort(dim=1).values)


def test_uncertain_points_of_no_mask_and_of_equal_logits():
    assert uncertain_points(torch.zeros(0, 9), 4).shape == (0, 4)
    assert uncertain_points(torch.full((2, 9), -3.0), 4).unique(dim=1).shape == (2, 4)


def test_uncertain_points_accept_any_layout():
    logits = torch.randn(20, 3)
    assert torch.equal(
        uncertain_points(logits.t(), 5).sort().values, uncertain_points(logits.t().contiguous(), 5).sort().values
    )


def test_more_uncertain_points_than_candidates_are_refused():
    with pytest.raises(ValueError, match="5 uncertain points out of 4"):
        uncertain_points(torch.zeros(1, 4), 5)


def test_random_points_follow_the_seed_and_fill_the_square():
    torch.manual_seed(5)
    points = random_points(2, 1000, torch.device("cpu"), torch.float64)
    assert points.shape == (2, 1000, 2) and points.dtype == torch.float64
    assert 0 <= points.min() < 0.01 and 0.99 < points.max() < 1
    torch.manual_seed(5)
    assert torch.equal(points, random_points(2, 1000, torch.device("cpu"), torch.float64))


def test_layers_at_once():
    assert layers_at_once(CPU_BLOCK // 3, torch.device("cpu")) == 3
    assert layers_at_once(10 * CPU_BLOCK, torch.device("cpu")) == 1
    assert layers_at_once(0, torch.device("cpu")) == CPU_BLOCK
    assert layers_at_once(ACCELERATOR_BLOCK // 5, torch.device("cuda")) == 5


def test_promotion_leaves_float64_alone():
    promoted = [at_least_float32(torch.zeros(1, dtype=d)).dtype for d in (torch.float16, torch.bfloat16, torch.float64)]
    assert promoted == [torch.float32, torch.float32, torch.float64]
