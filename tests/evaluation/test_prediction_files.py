import os

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fasegr.evaluation.prediction_files import encode_masks, label_file_names, submission_file_names, write_label_png


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


def test_run_length_codes():
    masks = torch.rand(3, 5, 7) > 0.5
    codes = encode_masks(masks)
    assert [code["size"] for code in codes] == [[5, 7]] * 3 and all(type(code["counts"]) is str for code in codes)
    np.testing.assert_array_equal(coco_mask.decode(codes), masks.permute(1, 2, 0))
    assert encode_masks(masks[:0]) == []


def test_submission_names_are_in_one_folder():
    assert submission_file_names(["a/1.jpg", "b/2.png"]) == {"a/1.jpg": "1.png", "b/2.png": "2.png"}
    with pytest.raises(ValueError, match=r"several images are named 1\.png"):
        submission_file_names(["a/1.jpg", "b/1.jpg"])
