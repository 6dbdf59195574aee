import json

import pytest
from PIL import Image

from fasegr.d2 import RUNTIME, DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.coco import register_coco
from tests.data.catalogs import without

INSTANCES = ("coco_2017_train", "coco_2017_val")
PANOPTIC = tuple(f"{name}_{suffix}" for name in INSTANCES for suffix in ("panoptic", "panoptic_with_sem_seg"))


@pytest.fixture
def coco():
    """Ours, also where detectron2 has registered its own."""
    with without(*INSTANCES, *PANOPTIC):
        register_coco()
        register_coco()
        yield


def test_classes(coco):
    for name in INSTANCES:
        meta = MetadataCatalog.get(name)
        assert meta.evaluator_type == "coco" and len(meta.thing_classes) == len(set(meta.thing_classes)) == 80
        assert meta.thing_classes[0] == "person" and meta.thing_classes[79] == "toothbrush"
        assert list(meta.thing_dataset_id_to_contiguous_id.values()) == list(range(80))
        assert meta.thing_dataset_id_to_contiguous_id[90] == 79
    for name in PANOPTIC:
        meta = MetadataCatalog.get(name)
        assert meta.evaluator_type == "coco_panoptic_seg" and meta.ignore_label == 255
        assert len(meta.stuff_classes) == len(set(meta.stuff_classes)) == 133 and len(meta.thing_classes) == 80
        assert meta.stuff_classes[:80] == meta.thing_classes and meta.stuff_classes[132] == "rug-merged"
        assert list(meta.stuff_dataset_id_to_contiguous_id.values()) == list(range(133))
        assert set(meta.thing_dataset_id_to_contiguous_id.items()) < set(meta.stuff_dataset_id_to_contiguous_id.items())
        assert meta.stuff_dataset_id_to_contiguous_id[200] == 132


@pytest.mark.skipif(RUNTIME != "detectron2", reason="compares with detectron2")
def test_classes_are_those_of_detectron2():
    theirs = {name: (MetadataCatalog.get(name)) for name in (*INSTANCES, "coco_2017_val_panoptic")}
    with without(*INSTANCES, *PANOPTIC):
        register_coco()
        for name, other in theirs.items():
            meta = MetadataCatalog.get(name)
            key = "stuff" if "panoptic" in name else "thing"
            assert getattr(meta, f"{key}_classes") == getattr(other, f"{key}_classes")
            colours = [tuple(colour) for colour in getattr(other, f"{key}_colors")]
            assert getattr(meta, f"{key}_colors") == colours
            assert meta.thing_dataset_id_to_contiguous_id == other.thing_dataset_id_to_contiguous_id
            assert (
                other.get("stuff_dataset_id_to_contiguous_id", {}).items()
                <= meta.get("stuff_dataset_id_to_contiguous_id", {}).items()
            )


def test_layout_on_disk(coco, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "coco"
    with pytest.raises(
        FileNotFoundError, match=r"coco/annotations/instances_val2017\.json .* https://cocodataset\.org"
    ):
        DatasetCatalog.get("coco_2017_val")
    for folder in ("val2017", "annotations", "panoptic_val2017"):
        (root / folder).mkdir(parents=True)
    Image.new("RGB", (9, 8)).save(root / "val2017" / "000000000139.jpg")
    Image.new("RGB", (9, 8)).save(root / "panoptic_val2017" / "000000000139.png")
    images = [{"id": 139, "file_name": "000000000139.jpg", "height": 8, "width": 9}]
    things = [{"id": 1, "image_id": 139, "category_id": 90, "bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 3, 1, 3, 3]]}]
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps({"images": images, "annotations": things}))
    segments = [{"image_id": 139, "file_name": "000000000139.png", "segments_info": [{"id": 5, "category_id": 200}]}]
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps({"images": images, "annotations": segments}))
    (record,) = DatasetCatalog.get("coco_2017_val")
    assert record["annotations"][0]["category_id"] == 79
    for name in ("coco_2017_val_panoptic", "coco_2017_val_panoptic_with_sem_seg"):
        (record,) = DatasetCatalog.get(name)
        assert record["segments_info"] == [{"id": 5, "category_id": 132, "isthing": False, "iscrowd": 0}]


def test_what_is_registered_is_left_alone():
    with without(*INSTANCES, *PANOPTIC):
        DatasetCatalog.register("coco_2017_val", list)
        MetadataCatalog.get("coco_2017_val").thing_classes = ["mine"]
        register_coco()
        assert DatasetCatalog.get("coco_2017_val") == []
        assert MetadataCatalog.get("coco_2017_val").thing_classes == ["mine"]
        assert len(MetadataCatalog.get("coco_2017_train").thing_classes) == 80
