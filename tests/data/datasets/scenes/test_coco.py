import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.scenes import coco as scenes_coco
from fasegr.data.datasets.scenes import semantic as scenes
from fasegr.data.datasets.scenes.painter import CLASSES, THINGS, paint_scene
from fasegr.data.panoptic_png import class_map, read_segment_ids
from tests.data.catalogs import without

FEW = {"train": 4, "val": 3}
NAMES = tuple(f"scenes_{task}_{split}" for task in ("instance", "panoptic") for split in FEW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "coco"
    scenes_coco.generate_coco_scenes(folder, FEW, size=64)
    return folder


def painted(split):
    number = list(FEW).index(split)
    return [paint_scene(scenes.SEED, number, index, 64, 64) for index in range(FEW[split])]


@pytest.mark.parametrize("split", FEW)
def test_segments_are_what_was_painted(folder, split):
    content = json.loads((folder / "annotations" / f"panoptic_{split}.json").read_text())
    assert [kind["id"] for kind in content["categories"]] == list(range(1, 13))
    for scene, image, annotation in zip(painted(split), content["images"], content["annotations"], strict=True):
        assert image["id"] == annotation["image_id"] and (image["height"], image["width"]) == (64, 64)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / split / image["file_name"])), scene.image)
        ids = read_segment_ids(folder / f"panoptic_{split}" / annotation["file_name"])
        segments = annotation["segments_info"]
        assert sorted(segment["id"] for segment in segments) == np.unique(ids).tolist()
        np.testing.assert_array_equal(class_map(ids, segments), scene.labels + 1)
        for segment in segments:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum() and len(np.unique(scene.objects[mask])) == 1
            x, y, width, height = segment["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert mask[y].any() and mask[y + height - 1].any() and mask[:, x].any() and mask[:, x + width - 1].any()
        things = sum(segment["category_id"] - 1 in THINGS for segment in segments)
        assert things == len(np.unique(scene.objects[scene.objects > 0]))


@pytest.mark.parametrize("split", FEW)
def test_instances_are_the_things_among_the_segments(folder, split):
    truth = COCO(str(folder / "annotations" / f"instances_{split}.json"))
    assert [kind["name"] for kind in truth.loadCats(truth.getCatIds())] == [CLASSES[label] for label in THINGS]
    for index, scene in enumerate(painted(split)):
        objects = truth.loadAnns(truth.getAnnIds(imgIds=[index], iscrowd=None))
        shown = np.zeros((64, 64), int)
        for thing in objects:
            mask = truth.annToMask(thing).astype(bool)
            assert thing["id"] > 0 and thing["area"] == mask.sum() == coco_mask.area(thing["segmentation"])
            assert thing["iscrowd"] == (mask.sum() < scenes_coco.CROWD_AREA)
            assert (scene.labels[mask] == thing["category_id"] - 1).all()
            shown += mask
        np.testing.assert_array_equal(shown, scene.objects > 0)


def test_what_is_seen_of_hidden_things_is_a_crowd(folder):
    crowds = [
        thing["iscrowd"]
        for split in FEW
        for thing in json.loads((folder / "annotations" / f"instances_{split}.json").read_text())["annotations"]
    ]
    assert 0 < sum(crowds) < len(crowds) / 2


def test_registered_and_painted_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(scenes, "SPLITS", FEW)
    with without(*NAMES):
        scenes_coco.register_coco_scenes()
        scenes_coco.register_coco_scenes()
        assert list(tmp_path.iterdir()) == []
        for split, count in FEW.items():
            things = DatasetCatalog.get(f"scenes_instance_{split}")
            segments = DatasetCatalog.get(f"scenes_panoptic_{split}")
            assert len(things) == len(segments) == count
            for one, other in zip(things, segments, strict=True):
                assert one["file_name"] == other["file_name"] and one["image_id"] == other["image_id"]
                names = [CLASSES[s["category_id"]] for s in other["segments_info"] if s["isthing"]]
                classes = MetadataCatalog.get("scenes_instance_train").thing_classes
                assert [classes[o["category_id"]] for o in one["annotations"]] == names
        meta = MetadataCatalog.get("scenes_panoptic_val")
        assert meta.stuff_classes == CLASSES and meta.thing_classes == [CLASSES[label] for label in THINGS]
        assert list(meta.thing_dataset_id_to_contiguous_id.values()) == list(THINGS)
    assert (tmp_path / scenes_coco.FOLDER).is_dir()
