import json
import os
import typing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from fasegr.config.validate import KEYS
from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.image_io import read_label
from fasegr.data.panoptic_png import read_segment_ids
from fasegr.evaluation.prediction_writer import FORMATS, Category, PredictionFiles, PredictionWriter
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation
from fasegr.visualization.overlays import palette

CATEGORIES = [
    Category("空 & <sky>", 90, (10, 20, 250), False),
    Category("cat", 3, (250, 0, 0), True),
    Category('dog "x"', 7, (0, 250, 0), True),
    Category("never", 8, (9, 9, 9), True),
]
SHAPE = (70, 90)


def labels_of_blobs(seed: int, shape=SHAPE) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    return ndimage.gaussian_filter(noise, (0, 6, 6)).argmax(0)


def semantic(labels: np.ndarray) -> dict:
    scores = 0.05 + 0.8 * (torch.from_numpy(labels) == torch.arange(4)[:, None, None]).float()
    return {"sem_seg": scores}


def write(folder, results: dict[str, dict], formats=FORMATS):
    files = PredictionFiles(folder, formats, CATEGORIES)
    entries = [files.add(image, str(Path(image).with_suffix(".png").name), result) for image, result in results.items()]
    files.finish(entries)


def fill(polygons: list[np.ndarray], shape=SHAPE) -> np.ndarray:
    centres = np.stack(np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5), -1).reshape(-1, 2)
    inside = [Polygon(np.concatenate([p, p[:1]])).contains_points(centres) for p in polygons]
    return np.any(inside, axis=0).reshape(shape) if polygons else np.zeros(shape, bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_the_keys_are_those_of_the_config():
    accepts = KEYS["TEST.SAVE_PREDICTIONS"].accepts
    assert accepts(list(FORMATS)) and accepts([]) and not accepts(["yolo"]) and not accepts("coco")


def test_classes_of_pixels_come_back_from_every_format(tmp_path):
    labels = labels_of_blobs(0)
    image = str(tmp_path / "bilder" / "größe 1.jpg")
    write(tmp_path / "out", {image: semantic(labels)})
    truth = {c: labels == c for c in np.unique(labels)}

    coco = COCO(tmp_path / "out" / "coco.json")
    assert [image["file_name"] for image in coco.dataset["images"]] == ["größe 1.jpg"]
    ids = {category.id: i for i, category in enumerate(CATEGORIES)}
    assert {ids[a["category_id"]] for a in coco.dataset["annotations"]} == set(truth)
    for annotation in coco.dataset["annotations"]:
        mask = truth[ids[annotation["category_id"]]]
        assert iou(coco.annToMask(annotation).astype(bool), mask) > 0.98
        assert annotation["area"] == mask.sum() and annotation["id"] >= 1 and "score" not in annotation

    root = ElementTree.parse(tmp_path / "out" / "cvat.xml").getroot()
    assert [name.text for name in root.findall("meta/task/labels/label/name")] == [c.name for c in CATEGORIES]
    (found,) = root.findall("image")
    assert found.attrib == {"id": "0", "name": "größe 1.jpg", "width": "90", "height": "70"}
    for c, mask in truth.items():
        texts = [p.get("points") for p in found.findall("polygon") if p.get("label") == CATEGORIES[c].name]
        polygons = [np.array([point.split(",") for point in text.split(";")], float) for text in texts]
        assert iou(fill(polygons), mask) > 0.97

    path = tmp_path / "out" / "labelme" / "größe 1.json"
    labelme = json.loads(path.read_text(encoding="utf-8"))
    assert os.path.normpath(path.parent / labelme["imagePath"]) == image
    assert (labelme["imageHeight"], labelme["imageWidth"]) == SHAPE
    for c, mask in truth.items():
        polygons = [np.array(s["points"]) for s in labelme["shapes"] if s["label"] == CATEGORIES[c].name]
        assert iou(fill(polygons), mask) > 0.97

    np.testing.assert_array_equal(read_label(tmp_path / "out" / "png" / "größe 1.png"), labels)
    colored = np.asarray(Image.open(tmp_path / "out" / "png" / "größe 1.png").convert("RGB"))
    np.testing.assert_array_equal(colored, np.array([c.color for c in CATEGORIES])[labels])
    sure = np.asarray(Image.open(tmp_path / "out" / "confidence" / "größe 1.png"))
    assert set(np.unique(sure)) == {round(255 * 0.85 / (0.85 + 3 * 0.05))}


def test_panoptic_segments(tmp_path):
    labels = labels_of_blobs(1)
    ids = np.zeros(SHAPE, np.int32)
    ids[labels == 0] = 1
    cats = labels == 1
    ids[cats & (np.arange(90) < 45)] = 2
    ids[cats & (np.arange(90) >= 45)] = 300
    segments = [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}, {"id": 300, "category_id": 1}]
    result = {"panoptic_seg": PanopticSegmentation(torch.from_numpy(ids), segments), **semantic(labels)}
    write(tmp_path, {"/data/a.jpg": result}, ["coco", "labelme"])
    found = json.loads((tmp_path / "coco_panoptic.json").read_text())
    (annotation,) = found["annotations"]
    np.testing.assert_array_equal(read_segment_ids(tmp_path / "coco_panoptic" / annotation["file_name"]), ids)
    for info, segment in zip(annotation["segments_info"], segments, strict=True):
        mask = ids == segment["id"]
        assert info["category_id"] == CATEGORIES[segment["category_id"]].id and info["area"] == mask.sum()
        y, x = np.nonzero(mask)
        assert info["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
    assert [c["isthing"] for c in found["categories"]] == [0, 1, 1, 1]
    coco = COCO(tmp_path / "coco.json")
    assert len(coco.dataset["annotations"]) == 3
    for annotation, segment in zip(coco.dataset["annotations"], segments, strict=True):
        assert iou(coco.annToMask(annotation).astype(bool), ids == segment["id"]) > 0.98


def test_instances_that_overlap_and_those_of_low_score(tmp_path):
    masks = torch.zeros(3, *SHAPE, dtype=torch.bool)
    masks[0, 5:40, 5:50] = True
    masks[0, 15:25, 15:25] = False  # a hole
    masks[1, 20:60, 30:80] = True
    masks[2] = True
    result = {"instances": Instances(torch.tensor([0.9, 0.5, 0.49]), torch.tensor([2, 1, 1]), masks)}
    write(tmp_path, {"/data/a.jpg": result}, ["coco", "cvat", "labelme"])
    coco = COCO(tmp_path / "coco.json")
    assert [(a["category_id"], round(a["score"], 3)) for a in coco.dataset["annotations"]] == [(7, 0.9), (3, 0.5)]
    for annotation, mask in zip(coco.dataset["annotations"], masks.numpy(), strict=False):
        assert iou(coco.annToMask(annotation).astype(bool), mask) > 0.98
    shapes = json.loads((tmp_path / "labelme" / "a.json").read_text())["shapes"]
    assert [s["description"] for s in shapes] == ["score 0.900", "score 0.500"]
    assert not (tmp_path / "coco_panoptic.json").exists()


def test_images_without_objects_and_no_images(tmp_path):
    nothing = Instances(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *SHAPE, dtype=torch.bool))
    empty = Instances(torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, *SHAPE, dtype=torch.bool))
    results = {f"/data/{i}.jpg": {"instances": instances} for i, instances in enumerate((nothing, empty))}
    write(tmp_path, results, ["coco", "cvat", "labelme"])
    coco = COCO(tmp_path / "coco.json")
    assert len(coco.getImgIds()) == 2 and coco.getAnnIds() == []
    assert len(ElementTree.parse(tmp_path / "cvat.xml").getroot().findall("image")) == 2
    assert json.loads((tmp_path / "labelme" / "1.json").read_text())["shapes"] == []
    write(tmp_path / "none", {}, ["coco", "cvat"])
    assert json.loads((tmp_path / "none" / "coco.json").read_text())["images"] == []


def test_too_many_classes_for_a_palette(tmp_path):
    with pytest.raises(ValueError, match=r"255 classes at most, and there are 300.*SAVE_LABELS"):
        PredictionFiles(tmp_path, ["png"], CATEGORIES[:1] * 300)


def test_names_that_xml_cannot_hold(tmp_path):
    categories = [CATEGORIES[0]._replace(name="a\x01b")]
    files = PredictionFiles(tmp_path, ["cvat"], categories)
    files.finish([files.add("/data/a\x02.jpg", "a.png", {"sem_seg_labels": torch.zeros(9, 9, dtype=torch.uint8)})])
    assert ElementTree.parse(tmp_path / "cvat.xml").getroot().find("image").get("name") == "a\ufffd.jpg"


def test_of_a_dataset(tmp_path):
    name = "test_prediction_writer"
    records = [{"file_name": f"/data/{i % 2}/{i}.jpg", "image_id": 40 + i} for i in range(3)]
    DatasetCatalog.register(name, lambda: records)
    ids = {11: 0, 12: 1, 13: 2, 14: 3}
    MetadataCatalog.get(name).set(stuff_classes=[c.name for c in CATEGORIES], stuff_dataset_id_to_contiguous_id=ids)
    writer = PredictionWriter(name, tmp_path, ["coco", "png"], palette)
    writer.process(typing.cast(list, records), [semantic(labels_of_blobs(i)) for i in range(3)])
    assert writer.evaluate() == {}
    found = json.loads((tmp_path / "coco.json").read_text())
    assert [(i["id"], i["file_name"]) for i in found["images"]] == [(40, "0/0.jpg"), (41, "1/1.jpg"), (42, "0/2.jpg")]
    assert [(c["id"], c["color"]) for c in found["categories"]] == [
        (11 + i, color.tolist()) for i, color in enumerate(palette(4))
    ]
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.png")) == [
        "png/0/0.png",
        "png/0/2.png",
        "png/1/1.png",
    ]
    writer.reset()
    writer.evaluate()
    assert json.loads((tmp_path / "coco.json").read_text())["images"] == []
