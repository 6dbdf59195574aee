import os
from multiprocessing import get_context

import numpy as np
import pytest

from fasegr.data.image_cache import DecodedCache


def source(folder, content="first"):
    path = folder / "a.png"
    path.write_text(content)
    return path


def refuse():
    raise AssertionError("decoded although there is an entry")


def test_a_file_is_decoded_once(tmp_path):
    cache, path, array = (
        DecodedCache(tmp_path / "cache"),
        source(tmp_path),
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    )
    np.testing.assert_array_equal(cache.get(path, lambda: array), array)
    again = DecodedCache(tmp_path / "cache").get(path, refuse)
    assert isinstance(again, np.memmap) and not again.flags.writeable
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_source_is_decoded_again_and_its_old_entry_removed(tmp_path, change):
    cache, path = DecodedCache(tmp_path / "cache"), source(tmp_path)
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
def test_an_entry_cut_short_is_made_anew(tmp_path, kept):
    cache, path, array = DecodedCache(tmp_path / "cache"), source(tmp_path), np.arange(100, dtype=np.uint8)
    cache.get(path, lambda: array)
    [entry] = (f for f in (tmp_path / "cache").rglob("*") if f.is_file())
    entry.write_bytes(entry.read_bytes()[:kept])
    np.testing.assert_array_equal(cache.get(path, lambda: array), array)
    np.testing.assert_array_equal(cache.get(path, refuse), array)


def _fill(arguments):
    folder, path, value = arguments
    return int(DecodedCache(folder).get(path, lambda: np.full((64, 64, 3), value, np.uint8)).max())


def test_processes_fill_one_folder_together(tmp_path):
    path = source(tmp_path)
    work = [(tmp_path / "cache", path, 7)] * 12
    with get_context("fork").Pool(2) as pool:
        assert pool.map(_fill, work, chunksize=1) == [7] * 12
    assert len([f for f in (tmp_path / "cache").rglob("*") if f.is_file()]) == 1  # nothing half-written stays


def test_what_cannot_be_decoded_leaves_nothing(tmp_path):
    cache = DecodedCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="damaged"):
        cache.get(source(tmp_path), lambda: (_ for _ in ()).throw(ValueError("damaged")))
    with pytest.raises(FileNotFoundError, match="gone"):
        cache.get(tmp_path / "missing.png", lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))
    assert not [f for f in (tmp_path / "cache").rglob("*") if f.is_file()]


def test_a_folder_that_cannot_be_made_names_the_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"INPUT\.CACHE"):
        DecodedCache(tmp_path / "file")


def test_a_folder_that_takes_nothing_more_names_the_key(tmp_path, monkeypatch):
    cache = DecodedCache(tmp_path / "cache")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"INPUT\.CACHE.*No space left"):
        cache.get(source(tmp_path), lambda: np.zeros(3))
    assert not [f for f in (tmp_path / "cache").rglob("*") if f.is_file()]
