import os
import re
import shutil
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from fasegr.data.dataset_mappers import build_mapper
from fasegr.data.image_cache import ImageCache, load_image
from fasegr.data.image_io import Reading, configure_reading
from fasegr.data.transform import Box, height_and_width, resize_image


def source(folder, content="first"):
    path = folder / "a.png"
    path.write_text(content)
    return path


def refuse():
    raise AssertionError("decoded although there is an entry")


def test_a_file_is_decoded_once(tmp_path):
    cache, path, array = (
        ImageCache(tmp_path / "cache"),
        source(tmp_path),
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    )
    np.testing.assert_array_equal(cache.get(path, lambda: array), array)
    again = ImageCache(tmp_path / "cache").get(path, refuse)
    assert isinstance(again, np.memmap) and not again.flags.writeable
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_source_is_decoded_again_and_its_old_entry_removed(tmp_path, change):
    cache, path = ImageCache(tmp_path / "cache"), source(tmp_path)
    cache.get(path, lambda: np.zeros(3, np.uint8))
    if change == "size":
        before = path.stat()
        path.write_text("something longer")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(cache.get(path, lambda: np.ones(3, np.uint8)), np.ones(3))
    assert len([f for f in (tmp_path / "cache").rglob("*") if f.is_file()]) == 1


@pytest.mark.parametrize("kept", [0, 40, 130])
def test_a_truncated_entry_is_made_again(tmp_path, kept):
    cache, path, array = ImageCache(tmp_path / "cache"), source(tmp_path), np.arange(100, dtype=np.uint8)
    cache.get(path, lambda: array)
    [entry] = (f for f in (tmp_path / "cache").rglob("*") if f.is_file())
    entry.write_bytes(entry.read_bytes()[:kept])
    np.testing.assert_array_equal(cache.get(path, lambda: array), array)
    np.testing.assert_array_equal(cache.get(path, refuse), array)


def _fill(arguments):
    folder, path, value = arguments
    return int(ImageCache(folder).get(path, lambda: np.full((64, 64, 3), value, np.uint8)).max())


def test_processes_fill_one_folder_together(tmp_path):
    path = source(tmp_path)
    work = [(tmp_path / "cache", path, 7)] * 12
    with get_context("fork").Pool(2) as pool:
        assert pool.map(_fill, work, chunksize=1) == [7] * 12
    assert len([f for f in (tmp_path / "cache").rglob("*") if f.is_file()]) == 1  # nothing half-written stays


def test_what_cannot_be_decoded_leaves_nothing(tmp_path):
    cache = ImageCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="damaged"):
        cache.get(source(tmp_path), lambda: (_ for _ in ()).throw(ValueError("damaged")))
    with pytest.raises(FileNotFoundError, match="gone"):
        cache.get(tmp_path / "missing.png", lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))
    assert not [f for f in (tmp_path / "cache").rglob("*") if f.is_file()]


def test_a_folder_that_cannot_be_made_names_the_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"INPUT\.CACHE"):
        ImageCache(tmp_path / "file").make_folder()


def full(folder, monkeypatch):
    def save(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", save)


def deleted(folder, monkeypatch):
    shutil.rmtree(folder)


def a_file(folder, monkeypatch):
    shutil.rmtree(folder)
    folder.write_text("")


def full_of_folders(folder, monkeypatch):
    for entry in [f for f in folder.rglob("*") if f.is_file()]:
        entry.unlink()
        (entry / "more").mkdir(parents=True)


def a_file_inside(folder, monkeypatch):
    shutil.rmtree(folder)
    folder.mkdir()
    for i in range(256):
        (folder / f"{i:02x}").write_text("")


def a_broken_link(folder, monkeypatch):
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


@pytest.mark.parametrize("happens", [full, deleted, a_file, full_of_folders, a_file_inside, a_broken_link])
def test_a_cache_that_is_lost_ends_nothing(tmp_path, monkeypatch, caplog, happens):
    """What was in it is decoded, what was not too, with one warning at most."""
    cache = ImageCache(tmp_path / "cache")
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file in files:
        file.write_text(file.name)
    first = cache.get(files[0], lambda: np.ones(3, np.uint8))
    happens(tmp_path / "cache", monkeypatch)
    for _ in range(2):
        for i, file in enumerate(files):
            got = cache.get(file, lambda i=i: np.full(3, i + 1, np.uint8))
            np.testing.assert_array_equal(got, [i + 1] * 3)
    np.testing.assert_array_equal(first, [1, 1, 1])  # that is in use
    warnings = [record.getMessage() for record in caplog.records]
    if happens is deleted:
        assert not warnings and len(list((tmp_path / "cache").rglob("*.npy"))) == 3  # it has filled again
    else:
        assert len(warnings) == 1 and re.search(r"INPUT\.CACHE .* cannot be used \(.*decoded", warnings[0]), warnings


def test_a_mapper_for_testing_needs_no_folder(tmp_path, cfg):
    """An evaluation in a training whose cache has been lost; the training itself would not have begun."""
    (tmp_path / "file").write_text("")
    cfg.INPUT.CACHE = str(tmp_path / "file")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    sample = build_mapper(cfg, is_train=False)({"file_name": str(tmp_path / "a.png")})
    assert sample["image"].shape[0] == 3
    with pytest.raises(OSError, match=r"INPUT\.CACHE"):
        build_mapper(cfg, is_train=True)


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_entry_is_made_again(tmp_path, seed):
    """Bytes of its header changed, and anything after its end; a header that was read as another array is found."""
    rng = np.random.default_rng(seed)
    cache, path = ImageCache(tmp_path / "cache"), source(tmp_path)
    array = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    cache.get(path, lambda: array)
    [entry] = (f for f in (tmp_path / "cache").rglob("*") if f.is_file())
    data = bytearray(entry.read_bytes())
    if seed == 0:
        data += b"more"
    elif seed == 1:
        data[:4] = b"PK\3\4"
    else:
        data[rng.integers(10 if seed % 2 else 60)] = rng.integers(256)
    entry.write_bytes(data)
    got = cache.get(path, lambda: array)
    np.testing.assert_array_equal(got, array)
    assert got.dtype == np.uint8


@pytest.mark.parametrize("seed", range(12))
def test_cached_images_are_resized_like_files(tmp_path, seed):
    """PIL's filter meets the same pixels with the same weights, up to the last bit of where they lie; values half way
    between two levels may then be rounded either way."""
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(20, 120, 2))
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "a.bmp")
    plain = load_image(tmp_path / "a.bmp")
    cached = load_image(tmp_path / "a.bmp", ImageCache(tmp_path / "cache"))
    assert height_and_width(plain) == height_and_width(cached) == (height, width)
    for scale in (0.2, 0.7, 1.0, 1.9):
        size = (max(8, int(height * scale)), max(8, int(width * scale))) if scale != 1 else (height, width)
        h, w = int(rng.integers(1, size[0] + 1)), int(rng.integers(1, size[1] + 1))
        box = Box(int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1)), h, w)
        expected, actual = (np.asarray(resize_image(image, size, box)).astype(int) for image in (plain, cached))
        assert expected.shape == actual.shape == (h, w, 3)
        assert abs(expected - actual).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_images_are_read_as_they_are(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / f"a.{suffix}")), pixels)


def test_images_read_in_another_way_have_entries_of_their_own(tmp_path):
    Image.fromarray(np.array([[0, 100, 4095]], np.uint16)).save(tmp_path / "a.png")
    cache, path = ImageCache(tmp_path / "cache"), tmp_path / "a.png"
    try:
        for bits, brightest in ((0, 255), (16, 16), (12, 255)):
            configure_reading(Reading(bit_depth=bits))
            assert load_image(path, cache).max() == brightest
    finally:
        configure_reading(Reading())
