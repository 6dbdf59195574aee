import numpy as np
import pytest
from PIL import Image

from fasegr.data.image_io import BadFile
from fasegr.data.panoptic_png import class_map, read_segment_ids, write_segment_ids


def test_numbers_are_red_green_and_blue(tmp_path):
    Image.fromarray(np.array([[[1, 0, 0], [2, 3, 4]], [[0, 0, 0], [255, 255, 255]]], np.uint8)).save(tmp_path / "a.png")
    ids = read_segment_ids(tmp_path / "a.png")
    assert ids.dtype == np.int32
    assert ids.tolist() == [[1, 2 + 3 * 256 + 4 * 65536], [0, 16777215]]


def test_what_is_written_is_read(tmp_path):
    ids = np.random.default_rng(0).integers(0, 256**3, (9, 14))
    ids[0, :2] = 0, 256**3 - 1
    write_segment_ids(tmp_path / "a.png", ids)
    np.testing.assert_array_equal(read_segment_ids(tmp_path / "a.png"), ids)
    for wrong in (-1, 256**3):
        with pytest.raises(ValueError, match=r"three bytes hold 0\.\.16777215"):
            write_segment_ids(tmp_path / "b.png", np.full((2, 2), wrong))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: there is no such file"):
        read_segment_ids(tmp_path / "none.png")
    Image.new("L", (3, 3)).save(tmp_path / "grey.png")
    with pytest.raises(BadFile, match=r"grey\.png: is an image of mode L; a PNG of segments is RGB"):
        read_segment_ids(tmp_path / "grey.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:700])
    with pytest.raises(BadFile, match=r"short\.png: the image data is damaged or cut short"):
        read_segment_ids(tmp_path / "short.png")


def test_classes_of_segments():
    ids = np.array([[7, 7, 0], [300, 300, 9]])
    segments = [{"id": 7, "category_id": 2}, {"id": 300, "category_id": 0, "iscrowd": 1}]
    labels = class_map(ids, segments, ignore_label=255)
    assert labels.dtype == np.uint8 and labels.tolist() == [[2, 2, 255], [0, 0, 255]]
    assert class_map(ids, segments, ignore_label=65535).tolist() == [[2, 2, 65535], [0, 0, 65535]]
    assert class_map(ids, [{"id": 9, "category_id": 300}]).tolist() == [[255] * 3, [255, 255, 300]]
