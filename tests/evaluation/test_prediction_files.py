import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from fasegr.evaluation.prediction_files import (
    label_file_names,
    run_lengths,
    submission_file_names,
    write_json,
    write_label_png,
)


def test_images_of_one_folder_keep_their_stems():
    assert label_file_names(["/data/x/a.jpg", "/data/x/b.c.jpg"]) == {
        "/data/x/a.jpg": "a.png",
        "/data/x/b.c.jpg": "b.c.png",
    }
    assert label_file_names(["a.jpg", "b.jpg"]) == {"a.jpg": "a.png", "b.jpg": "b.png"}
    assert label_file_names(["/only/one.jpg"]) == {"/only/one.jpg": "one.png"}
    assert label_file_names([]) == {}


def test_equal_stems_stay_apart():
    names = label_file_names(["/data/x/a.jpg", "/data/y/a.jpg", "/data/y/a.png", "/data/y/b.png"])
    expected = [("x", "a.png"), ("y", "a.jpg.png"), ("y", "a.png.png"), ("y", "b.png")]
    assert list(names.values()) == [os.path.join(*parts) for parts in expected]


@pytest.mark.parametrize(("classes", "mode"), [(255, "L"), (256, "I;16")])
def test_label_png_comes_back_equal(tmp_path, classes, mode):
    labels = np.random.default_rng(0).integers(0, classes, (11, 7))
    path = tmp_path / "deep" / "er" / "a.png"
    write_label_png(labels, path, classes)
    with Image.open(path) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), labels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (12, 17), (40, 30)])
@pytest.mark.parametrize("classes", [1, 2, 6, 400])
def test_run_lengths_are_those_of_coco(shape, classes):
    labels = np.random.default_rng(classes).integers(0, classes, shape)
    labels[:, : shape[1] // 2] = labels[0, 0]  # long runs too
    codes = run_lengths(labels)
    assert list(codes) == sorted({int(label) for label in labels.flat})
    for label, code in codes.items():
        expected = coco.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        assert code == {"size": list(shape), "counts": expected["counts"].decode()}


def test_json_replaces_the_file_in_one_step(tmp_path):
    path = tmp_path / "sub" / "a.json"
    write_json([1], path)
    with pytest.raises(TypeError):
        write_json([1, object()], path)
    assert json.loads(path.read_text()) == [1]
    assert os.listdir(path.parent) == ["a.json"]


def test_submission_names_are_in_one_folder():
    assert submission_file_names(["a/1.jpg", "b/2.png"]) == {"a/1.jpg": "1.png", "b/2.png": "2.png"}
    with pytest.raises(ValueError, match=r"several images are named 1\.png"):
        submission_file_names(["a/1.jpg", "b/1.jpg"])
