"""A tiny Cityscapes in the layout of the real one."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fasegr.data.datasets.cityscapes import LABELS

BY_NAME = {label.name: label for label in LABELS}
# Backgrounds first; groups, labels that are not evaluated, one that is never drawn. No truck, no train.
NAMES = [
    *("out of roi", "road", "building", "sky", "sidewalk", "vegetation", "parking", "wall", "pole", "polegroup"),
    *(
        "traffic sign",
        "caravan",
        "persongroup",
        "cargroup",
        "person",
        "rider",
        "car",
        "license plate",
        "bus",
        "bicycle",
    ),
]


def write_cityscapes(root: Path, splits=(("train", 3), ("val", 4)), size=(48, 96), seed=0, label_ids=True) -> None:
    """Photographs of noise, polygons and, unless `label_ids` is False, the two kinds of label maps of the archive, in
    `root`/cityscapes."""
    rng = np.random.default_rng(seed)
    for split, number in splits:
        for i in range(number):
            city = ("aachen", "bochum")[i % 2]
            stem = f"{city}_{i:06d}_000019"
            images, labels = (root / "cityscapes" / kind / split / city for kind in ("leftImg8bit", "gtFine"))
            for folder in (images, labels):
                folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{stem}_leftImg8bit.png")
            annotation = _annotate(rng, size)
            (labels / f"{stem}_gtFine_polygons.json").write_text(json.dumps(annotation))
            if label_ids:
                ids, instances = _draw(annotation)
                ids.save(labels / f"{stem}_gtFine_labelIds.png")
                instances.save(labels / f"{stem}_gtFine_instanceIds.png")


def _annotate(rng: np.random.Generator, size: tuple[int, int]) -> dict:
    height, width = size
    objects = []
    for name in [*NAMES, *rng.choice(NAMES[-10:], 8)]:
        corner = rng.integers(0, (width // 2, height // 2))
        x, y = corner
        far_x, far_y = corner + rng.integers(8, (width // 2, height // 2))
        polygon = [[int(x), int(y)], [int(far_x), int(y) + 2], [int(far_x) - 3, int(far_y)], [int(x), int(far_y)]]
        objects.append({"label": str(name), "polygon": polygon})
    objects.append({"label": "truck", "polygon": [[0, 0], [width, 0], [width, height]], "deleted": 1})
    return {"imgHeight": height, "imgWidth": width, "objects": objects}


def _draw(annotation: dict) -> tuple[Image.Image, Image.Image]:
    """Label ids (8 bits), and numbers of instances (16 bits)."""
    size = (annotation["imgWidth"], annotation["imgHeight"])
    maps = Image.new("L", size), Image.new("I", size)
    seen = dict.fromkeys(BY_NAME, 0)
    for item in annotation["objects"]:
        name = item["label"]
        group = name not in BY_NAME
        label = BY_NAME[name.removesuffix("group") if group else name]
        if item.get("deleted") or label.id < 0:
            continue
        number = label.id
        if label.instances and not group:
            number = 1000 * label.id + seen[name]
            seen[name] += 1
        for image, value in zip(maps, (label.id, number), strict=True):
            ImageDraw.Draw(image).polygon([tuple(point) for point in item["polygon"]], fill=value)
    return maps[0], Image.fromarray(np.asarray(maps[1]).astype(np.uint16))
