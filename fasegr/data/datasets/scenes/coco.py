"""The painted scenes in COCO's formats: `scenes_instance_*` and `scenes_panoptic_*`, painted when first asked for.

The files lie as COCO's do, so that what reads and scores COCO reads and scores them. Houses, trees, cars, balloons,
suns and birds are things, each told apart by the painter itself; the other six classes are stuff. An object's mask is
what is seen of it. Category ids are class numbers plus one, so those of the things have gaps, as COCO's have.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from fasegr.data.datasets.coco_json import BelowRoot, Category, register_instances, register_panoptic
from fasegr.data.datasets.scenes import semantic as scenes
from fasegr.data.datasets.scenes.painter import CLASSES, COLOURS, THINGS, Scene, paint_scene
from fasegr.data.panoptic_png import write_segment_ids

__all__ = ["CATEGORIES", "FOLDER", "generate_coco_scenes", "register_coco_scenes"]

FOLDER = f"fasegr_scenes/{scenes.VERSION}_coco"
CATEGORIES = [
    Category(label + 1, name, label in THINGS, colour)
    for label, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True))
]
CROWD_AREA = 16  # pixels: of a thing, less than this is a crowd. Nobody could name it, nor be blamed for it


def generate_coco_scenes(folder: str | Path, splits: dict[str, int] | None = None, size: int = scenes.SIZE) -> None:
    """Paints the scenes of `splits` with their annotations into `folder`, as `scenes.generate_scenes` does."""
    scenes.make_folder_once(Path(folder), lambda work: _paint(work, splits or scenes.SPLITS, size))


def _paint(folder: Path, splits: dict[str, int], size: int) -> None:
    (folder / "annotations").mkdir()
    with tqdm(total=sum(splits.values()), desc="painting scenes", unit="scene", mininterval=1) as bar:
        for number, (split, count) in enumerate(splits.items()):
            (folder / split).mkdir()
            (folder / f"panoptic_{split}").mkdir()
            images, objects, panoptic = [], [], []
            for index in range(count):
                scene, name = paint_scene(scenes.SEED, number, index, size, size), f"{index:04d}.png"
                Image.fromarray(scene.image).save(folder / split / name, compress_level=3)
                ids, segments = _segments(scene)
                write_segment_ids(folder / f"panoptic_{split}" / name, ids)
                images.append({"id": index, "file_name": name, "height": size, "width": size})
                panoptic.append({"image_id": index, "file_name": name, "segments_info": segments})
                for segment in segments:
                    if CATEGORIES[segment["category_id"] - 1].is_thing:
                        code = coco_mask.encode(np.asfortranarray(ids == segment["id"], dtype=np.uint8))
                        code = {"size": code["size"], "counts": code["counts"].decode("ascii")}
                        identity = {"id": len(objects) + 1, "image_id": index}  # pycocotools takes 0 for "unmatched"
                        objects.append({**segment, **identity, "segmentation": code})
                bar.update()
            kinds = [
                {"id": c.id, "name": c.name, "isthing": int(c.is_thing), "color": list(c.colour)} for c in CATEGORIES
            ]
            things = [kind for kind in kinds if kind["isthing"]]
            for task, annotations, categories in (("instances", objects, things), ("panoptic", panoptic, kinds)):
                content = {"images": images, "annotations": annotations, "categories": categories}
                (folder / "annotations" / f"{task}_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _segments(scene: Scene) -> tuple[np.ndarray, list[dict]]:
    """Segment of each pixel, from 1 on, and what COCO's panoptic format says about each segment."""
    keys, ids = np.unique(scene.labels.astype(np.int64) * 256 + scene.objects, return_inverse=True)
    ids = ids.reshape(scene.labels.shape) + 1
    segments = []
    for number, key in enumerate(keys.tolist(), start=1):
        mask, label = ids == number, key // 256
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        corner, area = (int(columns[0]), int(rows[0])), int(mask.sum())
        box = [*corner, int(columns[-1]) + 1 - corner[0], int(rows[-1]) + 1 - corner[1]]
        segments.append(
            {
                "id": number,
                "category_id": CATEGORIES[label].id,
                "area": area,
                "bbox": box,
                "iscrowd": int(label in THINGS and area < CROWD_AREA),
            }
        )
    return ids, segments


def register_coco_scenes() -> None:
    """Adds `scenes_instance_{train,val}` and `scenes_panoptic_{train,val}` to the catalogs, unless they are there."""
    for split in scenes.SPLITS:
        images, instances = BelowRoot(f"{FOLDER}/{split}"), BelowRoot(f"{FOLDER}/annotations/instances_{split}.json")
        register_instances(f"scenes_instance_{split}", CATEGORIES, instances, images, prepare=_paint_into_root)
        register_panoptic(
            f"scenes_panoptic_{split}",
            CATEGORIES,
            BelowRoot(f"{FOLDER}/annotations/panoptic_{split}.json"),
            BelowRoot(f"{FOLDER}/panoptic_{split}"),
            images,
            instances,
            prepare=_paint_into_root,
        )


def _paint_into_root() -> None:
    generate_coco_scenes(BelowRoot(FOLDER))
