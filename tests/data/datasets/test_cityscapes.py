import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.cityscapes import CATEGORIES, CLASSES, IGNORE, LABELS, register_cityscapes
from fasegr.data.image_io import BadFile
from tests.data.catalogs import CITYSCAPES, without
from tests.data.cityscapes_tree import write_cityscapes


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree with label maps, registered by us; its folder."""
    write_cityscapes(tmp_path)
    for file in tmp_path.rglob("*_labelIds.png"):
        label = Image.fromarray(np.zeros((48, 96), np.uint8))
        label.save(str(file).replace("labelIds", "labelTrainIds"))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with without(*CITYSCAPES):
        register_cityscapes()
        yield tmp_path / "cityscapes"


def test_table():
    assert [label.train_id for label in CLASSES] == list(range(19))
    assert CATEGORIES == ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
    assert [label.name for label in CLASSES if label.instances] == [
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    ]


def test_table_is_that_of_cityscapesscripts():
    theirs = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    rows = [(t.name, t.id, t.trainId if t.id >= 0 else IGNORE, t.category, t.hasInstances, t.color) for t in theirs]
    assert rows == [tuple(label) for label in LABELS]
    assert all(t.ignoreInEval == (t.trainId in (255, -1)) for t in theirs)


def test_metadata(tree):
    for name in CITYSCAPES:
        meta = MetadataCatalog.get(name)
        assert meta.stuff_classes[:2] == ["road", "sidewalk"] and len(meta.stuff_classes) == 19
        assert meta.stuff_colors[13] == (0, 0, 142) and meta.ignore_label == 255
        assert meta.submission_ids[:3] == [7, 8, 11] and meta.submission_ids[-1] == 33
        assert meta.evaluator_type == "cityscapes_sem_seg"


def test_records(tree):
    records = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    assert [Path(r["file_name"]).relative_to(tree).as_posix() for r in records] == [
        "leftImg8bit/val/aachen/aachen_000000_000019_leftImg8bit.png",
        "leftImg8bit/val/aachen/aachen_000002_000019_leftImg8bit.png",
        "leftImg8bit/val/bochum/bochum_000001_000019_leftImg8bit.png",
        "leftImg8bit/val/bochum/bochum_000003_000019_leftImg8bit.png",
    ]
    for record in records:
        label = record["file_name"].replace("leftImg8bit/val", "gtFine/val")
        assert record["sem_seg_file_name"] == label.replace("_leftImg8bit", "_gtFine_labelTrainIds")
        assert (record["height"], record["width"]) == (48, 96)
    assert len(DatasetCatalog.get("cityscapes_fine_sem_seg_train")) == 3


def test_records_are_those_of_detectron2(tree):
    detectron2 = pytest.importorskip("detectron2.data.datasets.cityscapes")
    theirs = detectron2.load_cityscapes_semantic(f"{tree}/leftImg8bit/val", f"{tree}/gtFine/val")
    ours = DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    assert sorted(theirs, key=lambda r: r["file_name"]) == ours


def test_test_images_have_no_truth(tree):
    with pytest.raises(FileNotFoundError, match=r"no image in .*leftImg8bit/test"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_test")
    write_cityscapes(tree.parent, splits=[("test", 2)], label_ids=False)
    records = DatasetCatalog.get("cityscapes_fine_sem_seg_test")
    assert [sorted(record) for record in records] == [["file_name", "height", "width"]] * 2


def test_what_is_missing_is_said(tree):
    for file in list(tree.rglob("val/*/*labelTrainIds.png"))[:2]:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape("2 of 4 images have no label map")) as error:
        DatasetCatalog.get("cityscapes_fine_sem_seg_val")
    assert "python datasets/prepare_cityscapes.py" in str(error.value)
    (tree / "leftImg8bit" / "train").rename(tree / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"cityscapes-dataset\.com") as error:
        DatasetCatalog.get("cityscapes_fine_sem_seg_train")
    assert f"DETECTRON2_DATASETS is {tree.parent}" in str(error.value)


def test_sizes_are_compared(tree):
    Image.new("L", (40, 48)).save(next(tree.rglob("val/*/*labelTrainIds.png")))
    with pytest.raises(BadFile, match="is 40 x 48"):
        DatasetCatalog.get("cityscapes_fine_sem_seg_val")


def test_what_is_registered_is_left_alone():
    with without(*CITYSCAPES):
        DatasetCatalog.register("cityscapes_fine_sem_seg_val", list)
        register_cityscapes()
        register_cityscapes()
        assert DatasetCatalog.get("cityscapes_fine_sem_seg_val") == []
