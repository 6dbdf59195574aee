from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.ade20k import register_ade20k
from tests.data.catalogs import ADE20K, without


@pytest.fixture
def unregistered():
    """The catalogs without ADE20K, which is put back afterwards."""
    with without(*ADE20K):
        yield


def test_classes(unregistered):
    register_ade20k()
    for name in ADE20K:
        meta = MetadataCatalog.get(name)
        assert len(meta.stuff_classes) == len(meta.stuff_colors) == 150
        assert meta.stuff_classes[:3] == ["wall", "building", "sky"] and meta.stuff_classes[149] == "flag"
        assert meta.stuff_colors[:2] == [(120, 120, 120), (180, 120, 120)]
        assert meta.ignore_label == 255 and meta.evaluator_type == "sem_seg"
        assert meta.submission_ids == list(range(1, 151))


def test_layout_on_disk(unregistered, tmp_path, monkeypatch):
    register_ade20k()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for kind, suffix, shape in (("images", "jpg", (8, 9, 3)), ("annotations_detectron2", "png", (8, 9))):
        folder = tmp_path / "ADEChallengeData2016" / kind / "validation"
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(folder / f"ADE_val_00000001.{suffix}")
    (record,) = DatasetCatalog.get("ade20k_sem_seg_val")
    assert Path(record["file_name"]).name == "ADE_val_00000001.jpg"
    with pytest.raises(FileNotFoundError, match="ADEChallengeData2016/images/training"):
        DatasetCatalog.get("ade20k_sem_seg_train")
    (tmp_path / "ADEChallengeData2016" / "images" / "training").mkdir()
    with pytest.raises(FileNotFoundError, match=r"make it with python datasets/prepare_ade20k_sem_seg\.py"):
        DatasetCatalog.get("ade20k_sem_seg_train")


def test_the_test_images_share_the_names_of_classes(unregistered):
    """detectron2's differ from ours by a space."""
    names = [f"class {i} " for i in range(150)]
    DatasetCatalog.register("ade20k_sem_seg_val", list)
    MetadataCatalog.get("ade20k_sem_seg_val").set(stuff_classes=names)
    register_ade20k()
    assert MetadataCatalog.get("ade20k_sem_seg_test").stuff_classes == names


def test_test_images_have_no_truth(unregistered, tmp_path, monkeypatch):
    register_ade20k()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "release_test" / "testing"
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(folder / "ADE_test_00000001.jpg")
    assert DatasetCatalog.get("ade20k_sem_seg_test") == [
        {"file_name": str(folder / "ADE_test_00000001.jpg"), "height": 8, "width": 9}
    ]


def test_what_is_registered_is_left_alone(unregistered):
    DatasetCatalog.register("ade20k_sem_seg_val", list)
    register_ade20k()
    register_ade20k()
    assert DatasetCatalog.get("ade20k_sem_seg_val") == []
