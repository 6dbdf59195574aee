import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.resized_rows import resized_rows


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("output", [(16, 20), (7, 31), (3, 4), (5, 10), (20, 10), (1, 1)])
def test_any_strip_is_that_of_the_whole_map(output, plain):
    source = torch.randn(4, 5, 10, dtype=torch.float64)
    whole = F.interpolate(source[None], size=output, mode="bilinear", align_corners=False)[0]
    with fast_paths.off(*(["strip_rows"] if plain else ["softmax_of_few"])):
        for start in range(0, output[0], 3):
            rows = slice(start, min(start + 3, output[0]))
            strip = resized_rows(lambda first, last: source[:, first:last], rows, (5, 10), output)
            torch.testing.assert_close(strip, whole[:, rows], rtol=1e-10, atol=1e-10)
