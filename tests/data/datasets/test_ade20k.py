from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.ade20k import register_ade20k

NAMES = ("ade20k_sem_seg_train", "ade20k_sem_seg_val")


@pytest.fixture
def unregistered():
    """The catalogs without ADE20K, which is put back afterwards."""
    loaders = {name: DatasetCatalog.pop(name) for name in NAMES if name in DatasetCatalog.list()}
    metadata = {name: MetadataCatalog.pop(name) for name in loaders}
    yield
    for name in NAMES:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
        if name in loaders:
            DatasetCatalog.register(name, loaders[name])
            MetadataCatalog[name] = metadata[name]


def test_classes(unregistered):
    register_ade20k()
    for name in NAMES:
        meta = MetadataCatalog.get(name)
        assert len(meta.stuff_classes) == len(meta.stuff_colors) == 150
        assert meta.stuff_classes[:3] == ["wall", "building", "sky"] and meta.stuff_classes[149] == "flag"
        assert meta.stuff_colors[:2] == [(120, 120, 120), (180, 120, 120)]
        assert meta.ignore_label == 255 and meta.evaluator_type == "sem_seg"


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


def test_what_is_registered_is_left_alone(unregistered):
    DatasetCatalog.register("ade20k_sem_seg_val", list)
    register_ade20k()
    register_ade20k()
    assert DatasetCatalog.get("ade20k_sem_seg_val") == []
