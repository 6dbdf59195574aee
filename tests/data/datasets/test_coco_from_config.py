import json
import os

import pytest
from PIL import Image

from fasegr.config.load import read_yaml
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.build import check_num_classes
from fasegr.data.datasets import register_from_config
from fasegr.data.image_io import BadFile

pytestmark = pytest.mark.usefixtures("catalogs")

CATEGORIES = [
    {"id": 8, "name": "dog", "isthing": 1, "color": [1, 2, 3]},
    {"id": 2, "name": "lawn", "isthing": 0, "color": [4, 5, 6]},
]


@pytest.fixture
def coco_cfg(cfg, tmp_path, monkeypatch):
    """A dataset of one image a split, below $DETECTRON2_DATASETS/pets."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "pets"
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for folder in (split, f"panoptic_{split}"):
            (root / folder).mkdir()
            Image.new("RGB", (9, 8)).save(root / folder / "a.png")
        images = [{"id": 1, "file_name": "a.png", "height": 8, "width": 9}]
        outline = [[1, 1, 5, 1, 5, 5]]
        things = [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 4, 4], "segmentation": outline}]
        segments = [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 5, "category_id": 2}]}]
        for task, annotations, categories in (
            ("instances", things, CATEGORIES[:1]),
            ("panoptic", segments, CATEGORIES),
        ):
            content = {"images": images, "annotations": annotations, "categories": categories}
            (root / "annotations" / f"{task}_{split}.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO.NAME = "pets"
    cfg.DATASETS.COCO.ROOT = "pets"
    return cfg


def test_without_a_name_there_is_none(cfg):
    assert register_from_config(cfg) == []


def test_instances(coco_cfg):
    assert register_from_config(coco_cfg) == ["pets_train", "pets_val"]
    assert register_from_config(coco_cfg) == ["pets_train", "pets_val"]
    (record,) = DatasetCatalog.get("pets_val")
    assert os.path.isfile(record["file_name"]) and record["annotations"][0]["category_id"] == 0
    meta = MetadataCatalog.get("pets_val")
    assert meta.thing_classes == ["dog"] and meta.evaluator_type == "coco"
    coco_cfg.DATASETS.TRAIN = ("pets_train",)
    with pytest.raises(ValueError, match="NUM_CLASSES is 3, but pets_train has 1 classes"):
        check_num_classes(coco_cfg)


def test_panoptic(coco_cfg):
    coco_cfg.DATASETS.COCO.PANOPTIC = "annotations/panoptic_{split}.json"
    register_from_config(coco_cfg)
    (record,) = DatasetCatalog.get("pets_train")
    assert record["segments_info"] == [{"id": 5, "category_id": 0, "isthing": False, "iscrowd": 0}]
    meta = MetadataCatalog.get("pets_train")
    assert meta.stuff_classes == ["lawn", "dog"] and meta.thing_classes == ["dog"]
    assert meta.thing_dataset_id_to_contiguous_id == {8: 1} and meta.evaluator_type == "coco_panoptic_seg"
    assert os.path.isfile(meta.json_file)
    coco_cfg.DATASETS.COCO.INSTANCES = ""
    register_from_config(coco_cfg)
    assert MetadataCatalog.get("pets_train").json_file is None


def test_categories_of_a_file_of_their_own(coco_cfg, tmp_path):
    """Then nothing else needs to be there; the file lies beside the YAML that names it."""
    (tmp_path / "pets.json").write_text(json.dumps(CATEGORIES))
    (tmp_path / "pets.yaml").write_text("DATASETS: {COCO: {NAME: pets, CATEGORIES: pets.json}}\n")
    stated = read_yaml(tmp_path / "pets.yaml")["DATASETS.COCO.CATEGORIES"]
    assert stated == str((tmp_path / "pets.json").resolve())
    coco_cfg.DATASETS.COCO.CATEGORIES = stated
    coco_cfg.DATASETS.COCO.ROOT = "not_here"
    register_from_config(coco_cfg)
    with pytest.raises(FileNotFoundError, match=r"not_here/annotations/instances_train\.json .*Correct DATASETS\.COCO"):
        DatasetCatalog.get("pets_train")


def test_mistakes_are_named(coco_cfg):
    coco = coco_cfg.DATASETS.COCO
    coco.IMAGES = "images"
    with pytest.raises(ValueError, match=r"DATASETS\.COCO\.IMAGES is 'images' for the splits train, val"):
        register_from_config(coco_cfg)
    coco.IMAGES = "{split}"
    coco.ROOT = "not_here"
    with pytest.raises(FileNotFoundError, match=r"not_here/annotations/instances_train\.json: there is no such list"):
        register_from_config(coco_cfg)
    coco.ROOT, coco.INSTANCES = "pets", ""
    with pytest.raises(ValueError, match=r"INSTANCES and PANOPTIC are empty"):
        register_from_config(coco_cfg)
    coco.INSTANCES = "annotations/panoptic_{split}.json"
    register_from_config(coco_cfg)
    with pytest.raises(BadFile, match="no category_id"):
        DatasetCatalog.get("pets_train")
    coco.INSTANCES = "annotations/instances_{split}.json"
    coco.NAME = "others"
    DatasetCatalog.register("others_val", list)
    with pytest.raises(ValueError, match="another dataset is registered as others_val"):
        register_from_config(coco_cfg)
