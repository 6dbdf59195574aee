import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import ndimage

from fasegr.analysis.image_copies import grey_thumbnail, near_copies, perceptual_hash
from fasegr.data.image_io import BadFile


def photograph(seed, size=(90, 120)):
    """Smooth noise, as different from another seed's as two photographs are."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(*size, 3)), (7, 7, 0))
    noise = (noise - noise.min()) / np.ptp(noise)
    return Image.fromarray((255 * noise).astype(np.uint8))


def hashes_of(files):
    thumbnails = np.array([grey_thumbnail(file) for file in files])
    return np.array([perceptual_hash(thumbnail) for thumbnail in thumbnails], np.uint64), thumbnails


@pytest.fixture
def save(tmp_path):
    def save(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def test_copies_are_found_and_others_are_not(save):
    train = [save(photograph(i), f"{i}.png") for i in range(40)]
    original = photograph(7)
    copies = [
        save(original.resize((57, 43)), "small.jpg", quality=50),
        save(ImageEnhance.Brightness(original).enhance(1.2), "bright.png"),
        save(original.crop((2, 2, 118, 88)), "cropped.jpg"),
        save(original.convert("L"), "grey.png"),
    ]
    others = [save(photograph(i), f"{i}.jpg") for i in range(100, 130)]
    found = near_copies(*hashes_of(train), *hashes_of([*others, *copies]))
    assert {(pair.first, pair.second) for pair in found} == {(7, 30), (7, 31), (7, 32), (7, 33)}
    assert [pair.bits for pair in found] == sorted(pair.bits for pair in found)


def test_images_without_a_picture_are_no_copies(save):
    white = [save(Image.new("RGB", (50, 50), "white"), "a.png"), save(Image.new("RGB", (60, 50), "white"), "b.png")]
    assert near_copies(*hashes_of(white[:1]), *hashes_of(white[1:])) == []
    assert near_copies(np.empty(0, np.uint64), np.empty((0, 32, 32)), *hashes_of(white)) == []


def test_hash_is_that_of_imagehash():
    imagehash = pytest.importorskip("imagehash")
    for seed in range(5):
        image = photograph(seed).convert("L").resize((32, 32))
        theirs = np.packbits(imagehash.phash(image).hash.ravel())
        assert perceptual_hash(np.asarray(image)) == theirs.view(np.uint64)[0]


def test_all_of_a_file_is_read(save):
    path = save(photograph(0, (400, 500)), "a.jpg")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadFile, match=r"a\.jpg: .*damaged or cut short"):
        grey_thumbnail(path)
