"""LABEL_MAP against the pixels that it is given."""

import pickle

import numpy as np
import pytest
from PIL import Image

from fasegr.data.datasets.label_map import make_label_map, read_record_labels, record_label_size
from fasegr.data.image_io import BadFile, read_label

NAMES, COLOURS = ["sky", "road", "car"], [(70, 130, 180), (128, 64, 128), (0, 0, 142)]


def make(given, ignore_label=255, colours=COLOURS):
    return make_label_map(given, NAMES, colours, ignore_label)


def save(values, path, mode=None):
    image = Image.fromarray(np.asarray(values, np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1"])
def test_black_and_white_masks(tmp_path, mode):
    """As drawing tools write them."""
    path = save([[0, 255, 255]], tmp_path / "a.png", mode)
    assert make([[0, "sky"], [255, "car"]]).read(path).tolist() == [[0, 2, 2]]
    assert make([[0, "ignore"], [255, 1]]).read(path).tolist() == [[255, 1, 1]]


def test_merged_and_dropped_values(tmp_path):
    path = save([[0, 1, 2, 3, 255]], tmp_path / "a.png")
    mapped = make([[0, "ignore"], [1, "sky"], [2, "car"], [3, "car"]])
    labels = mapped.read(path)
    assert labels.tolist() == [[255, 0, 2, 2, 255]] and labels.dtype == np.uint8


def test_counted_from_one(tmp_path):
    assert make("from_one").read(save([[0, 1, 2, 3]], tmp_path / "a.png")).tolist() == [[255, 0, 1, 2]]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp"])
def test_colours_of_the_class_list(tmp_path, suffix):
    rows = [[COLOURS[2], COLOURS[0], COLOURS[1]]]
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / f"a.{suffix}", **options)
    assert make("colours").read(tmp_path / f"a.{suffix}").tolist() == [[2, 0, 1]]


def test_a_palette_by_index_and_by_colour(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    image.putpalette([128, 64, 128, 0, 0, 142])
    image.save(tmp_path / "a.png")
    assert make([[0, "car"], [1, "sky"]]).read(tmp_path / "a.png").tolist() == [[2, 0]]
    assert make("colours").read(tmp_path / "a.png").tolist() == [[1, 2]]


def test_what_is_not_mapped_is_named_with_its_pixels(tmp_path):
    path = save([[0, 7, 7, 9, 255]], tmp_path / "a.png")
    with pytest.raises(
        BadFile, match=r"a\.png: holds values .* not have: 7 \(2 pixels\), 9 \(1 pixels\), 3 of 5 pixels"
    ):
        make([[0, "sky"]]).read(path)
    Image.fromarray(np.array([[COLOURS[0], (1, 2, 3)]], np.uint8)).save(path)
    with pytest.raises(BadFile, match=r"colours .* not have: \[1, 2, 3\] \(1 pixels\), 1 of 2 pixels"):
        make("colours").read(path)
    with pytest.raises(BadFile, match=r"a\.png: has colours; give .*LABEL_MAP colours"):
        make([[0, "sky"]]).read(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif"])
def test_lossy_files_are_refused(tmp_path, name):
    options = {"compression": "jpeg"} if name == "a.tif" else {}
    save([[0, 255] * 8] * 16, tmp_path / name, "RGB" if name != "a.jpg" else None).touch()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / name, **options)
    for read in (read_label, make([[0, "sky"]]).read, make("colours").read):
        with pytest.raises(BadFile, match=r"whose compression changes values.*export them again"):
            read(tmp_path / name)


def test_sixteen_bits_and_many_classes(tmp_path):
    Image.fromarray(np.array([[1000, 2]], np.uint16)).save(tmp_path / "a.png")
    labels = make([[1000, "car"], [2, "ignore"]], ignore_label=65535).read(tmp_path / "a.png")
    assert labels.tolist() == [[2, 65535]] and labels.dtype == np.uint16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[0, "tree"]], "one of the 3 classes"),
        ([[0, 3]], "one of the 3 classes"),
        ([[0, True]], "one of the 3 classes"),
        ([[-1, 0]], "must begin with a value"),
        ([[[0, 0, 256], 0]], "must begin with"),
        ([[0, 1], [0, 2]], "an earlier pair"),
        ([[0, 1], [[0, 0, 1], 2]], "both values and colours"),
        (["sky"], "is no pair"),
        ([[0, 1, 2]], "is no pair"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ValueError, match=f"DATASETS.FOLDER.LABEL_MAP.*{message}"):
        make(given)


def test_colours_that_say_nothing():
    with pytest.raises(ValueError, match="has none"):
        make("colours", colours=[])
    with pytest.raises(ValueError, match="same one"):
        make("colours", colours=[(0, 0, 0), (0, 0, 0), (1, 1, 1)])
    assert make([]) is None


def test_names_that_are_numbers(tmp_path):
    """A class that is called "2" is found by its name, the number 2 is the third class."""
    path = save([[0, 5]], tmp_path / "a.png")
    mapped = make_label_map([[0, "2"], [5, 2]], ["2", "1", "0"], [], 255)
    assert mapped.read(path).tolist() == [[0, 2]]


def test_records_carry_it_to_other_processes(tmp_path):
    path = save([[0, 255]], tmp_path / "a.png", "1")
    record = pickle.loads(pickle.dumps({"sem_seg_file_name": str(path), "label_map": make([[0, 0], [255, 1]])}))
    assert read_record_labels(record).tolist() == [[0, 1]]
    assert record_label_size(record) == (1, 2)
    assert len(pickle.dumps(make([[value, 0] for value in range(200)]))) < 4000  # once a record
