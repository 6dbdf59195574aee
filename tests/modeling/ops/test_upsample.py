import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops import upsample as doubling
from fasegr.modeling.ops.upsample import upsample


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 2), (7, 9)])
def test_doubles_as_torch_does(size):
    tokens = torch.randn(1, 3 + size[0] * size[1], 4, dtype=torch.float64)  # of which the map is a part
    x = tokens[:, 3:].transpose(1, 2).unflatten(2, size)
    doubled = (2 * size[0], 2 * size[1])
    expected = F.interpolate(x, size=doubled, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(x, doubled), expected)


def test_is_for_one_image_twice_as_large_without_a_gradient(monkeypatch):
    used = []
    original = doubling._doubled
    monkeypatch.setattr(doubling, "_doubled", lambda *args: used.append(args) or original(*args))
    x = torch.randn(1, 2, 3, 4)
    for map_, size in ((x, (6, 9)), (x.repeat(2, 1, 1, 1), (6, 8)), (x.clone().requires_grad_(), (6, 8))):
        expected = F.interpolate(map_, size=size, mode="bilinear", align_corners=False)
        assert torch.equal(upsample(map_, size), expected)
    with fast_paths.off("doubling"):
        upsample(x, (6, 8))
    assert not used
    upsample(x, (6, 8))
    assert used
