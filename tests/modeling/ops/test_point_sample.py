"""Sampling against grid_sample, and against arithmetic by hand."""

import pytest
import torch
import torch.nn.functional as F

from fasegr.modeling.ops import switches
from fasegr.modeling.ops.point_sample import TableSampler, bags_of_points, point_samplers, sample_points

SIZES = [(3, 5, 7), (1, 1, 1), (4, 1, 6), (2, 8, 3), (0, 4, 4)]


def points_everywhere(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Inside, on the border, a little outside and far outside."""
    coords = torch.rand(count, 2, dtype=dtype) * 1.6 - 0.3
    corners = torch.tensor([[0, 0], [1, 1], [0, 1], [1, 0], [0.5, 0.5], [-50, 0.5], [50, 50]], dtype=dtype)
    return torch.cat((coords, corners))


def table_sampler(coords, height, width):
    starts = torch.arange(0, 4 * len(coords), 4)
    return TableSampler(*bags_of_points(coords, height, width), starts, height, width)


def chosen_sampler(coords, height, width):
    """That of the second of two images."""
    return point_samplers(torch.stack((1 - coords, coords)), height, width)[1]


def each_by_itself(maps, coords):
    """One map and one point at a time."""
    grid = (2 * coords - 1)[None, None]
    samples = [F.grid_sample(m[None, None], grid, align_corners=False).flatten() for m in maps]
    return torch.stack(samples) if samples else maps.new_zeros(0, len(coords))


@pytest.mark.parametrize("sampler", [sample_points, lambda maps, coords: table_sampler(coords, *maps.shape[1:])(maps)])
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
    else:  # an empty result is still part of the graph
        assert torch.autograd.grad(samples.sum(), maps)[0].shape == size


def test_gradcheck():
    torch.manual_seed(1)
    sampler = table_sampler(points_everywhere(9, torch.float64), 3, 4)
    assert torch.autograd.gradcheck(sampler, torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True))


def test_values_by_hand():
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    coords = torch.tensor([[0.25, 0.25], [0.5, 0.5], [0.75, 0.5], [0.0, 0.25]])  # centre, middle, edge, half outside
    expected = torch.tensor([[1.0, 2.5, 3.0, 0.5]])
    torch.testing.assert_close(sample_points(maps, coords), expected)
    torch.testing.assert_close(table_sampler(coords, 2, 2)(maps), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_bool_maps_are_ones_and_zeros(dtype, size):
    torch.manual_seed(2)
    masks = torch.rand(size) > 0.5
    coords = points_everywhere(40, dtype)
    expected = each_by_itself(masks.to(dtype), coords)
    torch.testing.assert_close(table_sampler(coords, *size[1:])(masks), expected)
    torch.testing.assert_close(chosen_sampler(coords, *size[1:])(masks), expected)


def test_bool_maps_are_not_converted_whole(monkeypatch):
    """Neither to a floating-point table nor by a copy: the float path is never entered."""
    monkeypatch.setattr(TableSampler, "sample", None)
    assert table_sampler(torch.rand(5, 2), 6, 6)(torch.ones(2, 6, 6, dtype=torch.bool)).shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_sampled_in_the_precision_of_the_points(dtype):
    torch.manual_seed(3)
    maps = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    coords = torch.rand(30, 2)
    samples = chosen_sampler(coords, 5, 6)(maps)
    torch.testing.assert_close(samples, each_by_itself(maps.float(), coords))
    assert torch.autograd.grad(samples.sum(), maps)[0].dtype == dtype


def test_float64_and_the_switch_give_the_plain_form_bit_for_bit():
    maps, coords = torch.randn(2, 4, 4, dtype=torch.float64), torch.rand(9, 2, dtype=torch.float64)
    assert torch.equal(chosen_sampler(coords, 4, 4)(maps), sample_points(maps, coords))
    maps, coords = maps.float(), coords.float()
    torch.testing.assert_close(chosen_sampler(coords, 4, 4)(maps), sample_points(maps, coords))
    with switches.off("point_table"):
        assert torch.equal(chosen_sampler(coords, 4, 4)(maps), sample_points(maps, coords))


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5, 4\).*\(N, 4, 5\)"):
        table_sampler(torch.rand(3, 2), 4, 5)(torch.zeros(2, 5, 4))
