"""COCO's JSON of instances, by structure, by value and by byte, from the file to training samples and to AP."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.augmentation import LargeScaleJitter, ResizeShortestEdge
from fasegr.data.dataset_mappers import InferenceMapper, InstanceMapper
from fasegr.data.dataset_mappers.dataset_mapper import TrainingMapper
from fasegr.data.datasets.coco_json import read_categories, register_instances
from fasegr.evaluation import InstanceEvaluator
from fasegr.evaluation.ground_truth import ground_truth_result
from tests.fuzz.mutation import spoil, spoil_tree

SIZES = {4: (24, 36), 7: (30, 20), 9: (16, 16)}  # (height, width) by the id of the image


def write_images(folder: Path) -> list[dict]:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for number, size in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return [{"id": n, "file_name": f"{n}.png", "height": h, "width": w} for n, (h, w) in SIZES.items()]


def categories(things: bool) -> list[dict]:
    every = [(3, "cat", 1), (5, "grass", 0), (9, "dog", 1)]
    return [{"id": i, "name": n, "isthing": t, "color": [i, 2, 3]} for i, n, t in every if t or not things]


def prepare(folder: Path) -> dict:
    """The content of a good file: polygons, and both forms of run-length codes."""
    annotations = []
    for i in range(12):
        image, category = (4, 7, 9)[i % 3], (3, 9)[i % 2]
        height, width = SIZES[image]
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[i : i + 4, 2 : 6 + i % 5] = 1
        code = coco_mask.encode(mask)
        runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2)), prepend=0).tolist()
        forms = (
            [[2, i, 8.5, i, 8.5, i + 4.25, 2, i + 4], [1, 1, 5, 1, 5, 6]][: 1 + i % 2],
            {"size": [height, width], "counts": code["counts"].decode()},
            {"size": [height, width], "counts": runs},
        )
        fields = {"id": i, "image_id": image, "category_id": category, "bbox": [2, i, 4, 4], "iscrowd": int(i == 7)}
        annotations.append({**fields, "area": 16.0, "segmentation": forms[i // 2 % 3]})
    return {"images": write_images(folder / "pictures"), "annotations": annotations, "categories": categories(True)}


def write_spoilt(content: dict, rng: random.Random, path: Path) -> str:
    if rng.random() < 0.15:
        path.write_bytes(spoil(json.dumps(content).encode(), rng))
        return "bytes"
    path.write_text(json.dumps(spoil_tree(content, rng)))
    return "values"


def _spoil_code(content: dict, rng: random.Random) -> dict:
    """With other run lengths in one object."""
    content = json.loads(json.dumps(content))
    code = rng.choice([a["segmentation"] for a in content["annotations"] if isinstance(a["segmentation"], dict)])
    if isinstance(code["counts"], str):
        code["counts"] = spoil(code["counts"].encode(), rng).decode("latin1")
    else:
        code["counts"] = spoil_tree(code["counts"], rng)
    return content


def make(content: dict, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    path = folder / "own.json"
    if rng.random() < 0.2:
        path.write_text(json.dumps(_spoil_code(content, rng)))
        return "run lengths", [str(path)]
    return write_spoilt(content, rng, path), [str(path), str(folder.parent / "pictures")]


def samples(name: str, mapper: TrainingMapper) -> list[dict]:
    """The records of a dataset, each made a sample for training, and one for inference."""
    records = DatasetCatalog.get(name)
    for record in records:
        mapper(record, np.random.default_rng(0))
        InferenceMapper(ResizeShortestEdge(24, 48))(record)
    return records


def read(content: dict, folder: Path) -> str:
    """Samples of every image, and the score of its truth, which is 100 unless there is nothing to find."""
    DatasetCatalog.pop("own", None)
    MetadataCatalog.pop("own", None)
    path = folder / "own.json"
    register_instances("own", read_categories(path), path, folder.parent / "pictures")
    records = samples("own", InstanceMapper(LargeScaleJitter(32, 0.5, 2.0, "horizontal"), 2))
    evaluator = InstanceEvaluator("own", distributed=False)
    for record in records:
        size = (record["height"], record["width"])
        evaluator.process([record], [ground_truth_result(record, "instances", size)])
    scores = evaluator.evaluate()["segm"]
    if not (np.isnan(scores["AP"]) or scores["AP"] > 99.9):
        raise AssertionError(f"the truth has an AP of {scores}")
    return "samples and scores"
