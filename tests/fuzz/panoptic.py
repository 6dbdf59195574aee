"""COCO's panoptic JSON, and the PNGs of its segments, from the files to training samples and to PQ."""

import random
from pathlib import Path

import numpy as np

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.augmentation import LargeScaleJitter
from fasegr.data.dataset_mappers import PanopticMapper
from fasegr.data.datasets.coco_json import read_categories, register_panoptic
from fasegr.data.panoptic_png import write_segment_ids
from fasegr.data.semantic_labels import semantic_labels
from fasegr.evaluation import PanopticEvaluator
from fasegr.evaluation.ground_truth import ground_truth_result
from tests.fuzz.instances import SIZES, categories, samples, write_images, write_spoilt
from tests.fuzz.mutation import spoil, with_png_checksums


def prepare(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """The content of a good file, and its PNGs."""
    images, annotations, pngs = write_images(folder / "pictures"), [], {}
    for number, size in SIZES.items():
        ids = np.zeros(size, np.int64)
        segments = []
        for i, category in enumerate((3, 5, 9, 3)):
            ids[4 * i : 4 * i + 3] = 70000 * i + number
            segments.append({"id": 70000 * i + number, "category_id": category, "iscrowd": int(i == 3), "area": 3})
        write_segment_ids(folder / "segments.png", ids)
        pngs[f"{number}.png"] = (folder / "segments.png").read_bytes()
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    return {"images": images, "annotations": annotations, "categories": categories(False)}, pngs


def make(shared: tuple, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    content, pngs = shared
    (folder / "segments").mkdir()
    chosen = rng.choice(list(pngs)) if rng.random() < 0.3 else None
    for name, data in pngs.items():
        if name == chosen:
            data = with_png_checksums(spoil(data, rng))
        (folder / "segments" / name).write_bytes(data)
    path = folder / "own.json"
    names = [str(path), str(folder / "segments"), str(folder.parent / "pictures")]
    if chosen is None:
        return write_spoilt(content, rng, path), names
    import json

    path.write_text(json.dumps(content))
    return "a PNG", names


def read(shared: tuple, folder: Path) -> str:
    """Samples of every image, and the score of its truth."""
    DatasetCatalog.pop("own", None)
    MetadataCatalog.pop("own", None)
    path = folder / "own.json"
    register_panoptic("own", read_categories(path), path, folder / "segments", folder.parent / "pictures")
    records = samples("own", PanopticMapper(LargeScaleJitter(32, 0.5, 2.0, "horizontal"), 3))
    evaluator = PanopticEvaluator("own", distributed=False)
    for record in records:
        semantic_labels(record)
        evaluator.process([record], [ground_truth_result(record, "panoptic_seg", (record["height"], record["width"]))])
    scores = evaluator.evaluate()["panoptic_seg"]
    if not (np.isnan(scores["PQ"]) or scores["PQ"] <= 100):
        raise AssertionError(f"the truth has a PQ of {scores}")
    return "samples and scores"
