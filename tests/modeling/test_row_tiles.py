import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.row_tiles import resize_rows, row_tiles


@pytest.mark.parametrize("output", [(16, 20), (7, 31), (3, 4), (5, 10), (20, 10), (1, 1)])
def test_any_tile_is_part_of_the_whole_map(output):
    source = torch.randn(4, 5, 10, dtype=torch.float64)
    whole = F.interpolate(source[None], size=output, mode="bilinear", align_corners=False)[0]
    for start in range(0, output[0], 3):
        rows = slice(start, min(start + 3, output[0]))
        tile = resize_rows(lambda first, last: source[:, first:last], rows, (5, 10), output)
        torch.testing.assert_close(tile, whole[:, rows], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("elements_per_row", [1, 10**6, 10**9])
def test_tiles_cover_the_rows_in_order(elements_per_row):
    tiles = list(row_tiles(3, 40, elements_per_row, torch.device("cpu")))
    assert [row for tile in tiles for row in range(tile.start, tile.stop)] == list(range(3, 40))
