import pytest
import torch

from fasegr.modeling.point_sampling import at_least_float32, random_points, uncertain_points


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


def test_promotion_keeps_float64():
    promoted = [at_least_float32(torch.zeros(1, dtype=d)).dtype for d in (torch.float16, torch.bfloat16, torch.float64)]
    assert promoted == [torch.float32, torch.float32, torch.float64]
