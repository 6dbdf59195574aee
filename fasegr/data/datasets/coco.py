"""COCO 2017 under the names that detectron2 and Mask2Former have for it."""

from pathlib import Path

from fasegr.data.datasets.coco_json import BelowRoot, read_categories, register_instances, register_panoptic

__all__ = ["SOURCE", "register_coco"]

SOURCE = (
    "Get images and annotations of 2017 (and the panoptic ones) from https://cocodataset.org/#download and unpack them "
    "as datasets/README.md shows. "
)


def register_coco() -> None:
    """Adds `coco_2017_{train,val}` (instances, 80 classes) and `coco_2017_{train,val}_panoptic` (133) to the catalogs;
    where detectron2 has a name, its registration stays.

    `..._panoptic_with_sem_seg` are the same images and segments, and so Mask2Former's recipes call what they test on;
    the label maps that the name speaks of are made of the segments here.
    """
    categories = read_categories(Path(__file__).with_name("coco_categories.txt"))
    for split in ("train", "val"):
        images = BelowRoot(f"coco/{split}2017")
        instances = BelowRoot(f"coco/annotations/instances_{split}2017.json")
        register_instances(f"coco_2017_{split}", categories, instances, images, SOURCE)
        for suffix in ("panoptic", "panoptic_with_sem_seg"):
            register_panoptic(
                f"coco_2017_{split}_{suffix}",
                categories,
                BelowRoot(f"coco/annotations/panoptic_{split}2017.json"),
                BelowRoot(f"coco/panoptic_{split}2017"),
                images,
                instances,
                source=SOURCE,
            )
