import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.ops import winograd


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (36, 4), (4, 1100)])  # the last has more tiles than a block in a row
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_a_direct_sum(size, layout):
    torch.manual_seed(0)
    x = torch.randn(2, 5, *size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(3, 5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(winograd.conv3x3(x, weight), F.conv2d(x, weight, padding=1))


def test_several_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(winograd, "BLOCK", 6)
    x, weight = torch.randn(1, 2, 20, 12, dtype=torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(winograd.conv3x3(x, weight), F.conv2d(x, weight, padding=1))


def test_in_float32_the_error_is_that_of_the_docstring():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 32, 32), torch.randn(256, 256, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error = (winograd.conv3x3(x, weight) - exact).abs().max() / exact.abs().max()
    assert error < 3e-5


def test_a_map_of_broken_tiles_is_refused():
    with pytest.raises(ValueError, match="multiples of 4, not 8 x 10"):
        winograd.conv3x3(torch.zeros(1, 2, 8, 10), torch.zeros(2, 2, 3, 3))


@pytest.mark.parametrize(
    ("shape", "kernel", "suits"),
    [
        ((1, 128, 64, 64), (128, 128, 3, 3), True),
        ((4, 128, 32, 32), (128, 128, 3, 3), True),
        ((1, 128, 32, 32), (128, 128, 3, 3), False),
        ((1, 64, 64, 64), (128, 64, 3, 3), False),
        ((1, 128, 64, 66), (128, 128, 3, 3), False),
        ((1, 128, 64, 64), (128, 128, 5, 5), False),
    ],
)
def test_is_for_many_whole_tiles_of_many_channels(shape, kernel, suits):
    assert winograd.suits(torch.empty(shape, device="meta"), torch.empty(kernel, device="meta")) is suits
