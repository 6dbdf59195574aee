import numpy as np
import pytest
from PIL import Image

from fasegr.data.augmentation import Box, resize_image, resize_pixels
from fasegr.data.image_cache import DecodedCache
from fasegr.data.source_image import DecodedPhotograph, Photograph, read_photograph


@pytest.mark.parametrize("seed", range(12))
def test_what_the_cache_keeps_is_resized_as_the_file_is(tmp_path, seed):
    """PIL's filter meets the same pixels with the same weights, up to the last bit of where they lie; values half way
    between two levels may then be rounded either way."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(20, 120, 2))
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "a.bmp")
    plain = read_photograph(tmp_path / "a.bmp", None)
    cached = read_photograph(tmp_path / "a.bmp", DecodedCache(tmp_path / "cache"))
    assert plain.size == cached.size == (height, width)
    for scale in (0.2, 0.7, 1.0, 1.9):
        size = (max(8, int(height * scale)), max(8, int(width * scale))) if scale != 1 else (height, width)
        h, w = int(rng.integers(1, size[0] + 1)), int(rng.integers(1, size[1] + 1))
        box = Box(int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1)), h, w)
        expected, actual = (np.asarray(p.resized(size, box)).astype(int) for p in (plain, cached))
        assert expected.shape == actual.shape == (h, w, 3)
        assert abs(expected - actual).max() <= 1


def test_a_png_is_read_as_an_array_and_other_files_by_pil(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    for name, kind in (("a.png", DecodedPhotograph), ("a.bmp", Photograph)):
        Image.fromarray(pixels).save(tmp_path / name)
        photograph = read_photograph(tmp_path / name, None)
        assert isinstance(photograph, kind)
        np.testing.assert_array_equal(photograph.resized((6, 9), Box(1, 2, 3, 4)), pixels[1:4, 2:6])


def test_few_values_of_a_photograph_are_rounded_otherwise():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 601, 3), dtype=np.uint8)  # noise: the hardest to agree on
    for size in ((251, 377), (611, 918)):
        box = Box(13, 40, 200, 300)
        full, part = np.asarray(resize_image(Image.fromarray(pixels), size, box)), resize_pixels(pixels, size, box)
        assert (full != np.asarray(part)).mean() < 0.01
