import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling import fast_paths
from fasegr.modeling.resize import resize

SIZES = [((4, 6), (8, 12)), ((5, 3), (7, 11)), ((1, 1), (3, 2)), ((8, 9), (4, 5)), ((4, 6), (4, 12)), ((4, 6), (4, 6))]


@pytest.mark.parametrize(("size", "output"), SIZES)
def test_equals_interpolate(size, output):
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    reference = F.interpolate(x, size=output, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize(x, output), reference, rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)
    with fast_paths.off("channels_last_resize"):
        assert torch.equal(resize(x, output), reference)


def test_the_layout_stays_and_gradients_pass():
    x = torch.randn(1, 16, 4, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    assert resize(x, (8, 12)).is_contiguous(memory_format=torch.channels_last)
    small = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resize(t, (4, 5)), small)
