"""The painted scenes in COCO's formats: `scenes_instance_*` and `scenes_panoptic_*`, painted when first asked for.

The files lie as COCO's do, so that what reads and scores COCO reads and scores them. Houses, trees, cars, balloons,
suns and birds are things, counted one by one by the painter itself; the other six classes are stuff. An object's mask
is its visible part. Category ids are class numbers plus one, so those of the things have gaps, as COCO's have.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from fasegr.data.datasets.coco_json import Category, register_instances, register_panoptic
from fasegr.data.datasets.root import DatasetPath
from fasegr.data.datasets.scenes import semantic as scenes
from fasegr.data.datasets.scenes.painter import CLASSES, COLOURS, THINGS, Scene
from fasegr.data.panoptic_png import write_segment_ids
from fasegr.utils.files import write_json

__all__ = ["CATEGORIES", "FOLDER", "generate_coco_scenes", "register_coco_scenes"]

FOLDER = f"fasegr_scenes/{scenes.VERSION}_coco"
CATEGORIES = [
    Category(label + 1, name, label in THINGS, colour)
    for label, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True))
]
CROWD_AREA = 16  # pixels: the visible part of a thing smaller than this is a crowd, since nobody could name it


def generate_coco_scenes(
    folder: str | os.PathLike, splits: dict[str, int] | None = None, size: int = scenes.SIZE
) -> None:
    """Paints the scenes of `splits` with their annotations into `folder`, as `scenes.generate_scenes` does."""
    scenes.make_folder_once(Path(folder), lambda work: _paint(work, splits or scenes.SPLITS, size))


def _paint(folder: Path, splits: dict[str, int], size: int) -> None:
    categories = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.colour)} for c in CATEGORIES]
    things = [category for category in categories if category["isthing"]]
    content = {}
    for split in splits:
        (folder / split).mkdir()
        (folder / f"panoptic_{split}").mkdir()
        for task, kinds in (("instances", things), ("panoptic", categories)):
            content[task, split] = {"images": [], "annotations": [], "categories": kinds}
    for split, index, scene in scenes.paint_splits(splits, size):
        instances, panoptic = content["instances", split], content["panoptic", split]
        name = f"{index:04d}.png"
        scenes.write_image(scene, folder / split / name)
        ids, segments = _segments(scene)
        write_segment_ids(folder / f"panoptic_{split}" / name, ids)
        for file in (instances, panoptic):
            file["images"].append({"id": index, "file_name": name, "height": size, "width": size})
        panoptic["annotations"].append({"image_id": index, "file_name": name, "segments_info": segments})
        for segment in segments:
            if CATEGORIES[segment["category_id"] - 1].is_thing:
                code = coco_mask.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
                code = {"size": code["size"], "counts": code["counts"].decode("ascii")}
                # pycocotools takes the id 0 for "unmatched"
                identity = {"id": len(instances["annotations"]) + 1, "image_id": index}
                instances["annotations"].append({**segment, **identity, "segmentation": code})
    for (task, split), file in content.items():
        write_json(file, folder / "annotations" / f"{task}_{split}.json")


def _segments(scene: Scene) -> tuple[np.ndarray, list[dict]]:
    """Segment of each pixel, from 1 on, and what COCO's panoptic format says about each segment."""
    keys, ids = np.unique(scene.labels.astype(np.int64) * 256 + scene.objects, return_inverse=True)
    ids = ids.reshape(scene.labels.shape) + 1
    segments = []
    for number, key in enumerate(keys.tolist(), start=1):
        mask, label = ids == number, key // 256
        rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        area = int(mask.sum())
        segments.append(
            {
                "id": number,
                "category_id": CATEGORIES[label].id,
                "area": area,
                "bbox": [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]],
                "iscrowd": int(label in THINGS and area < CROWD_AREA),
            }
        )
    return ids, segments


def register_coco_scenes() -> None:
    """Adds `scenes_instance_{train,val}` and `scenes_panoptic_{train,val}` to the catalogs, unless they are there."""

    def paint() -> None:
        generate_coco_scenes(DatasetPath(FOLDER))

    for split in scenes.SPLITS:
        images, instances = (
            DatasetPath(f"{FOLDER}/{split}"),
            DatasetPath(f"{FOLDER}/annotations/instances_{split}.json"),
        )
        panoptic = DatasetPath(f"{FOLDER}/annotations/panoptic_{split}.json"), DatasetPath(f"{FOLDER}/panoptic_{split}")
        register_instances(f"scenes_instance_{split}", CATEGORIES, instances, images, prepare=paint)
        register_panoptic(f"scenes_panoptic_{split}", CATEGORIES, *panoptic, images, instances, prepare=paint)
