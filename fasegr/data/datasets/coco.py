"""COCO 2017 under the names that detectron2 and Mask2Former have for it."""

from pathlib import Path

from fasegr.data.datasets.coco_json import read_categories, register_instances, register_panoptic
from fasegr.data.datasets.root import DatasetPath

__all__ = ["SOURCE", "register_coco"]

SOURCE = (
    "Get images and annotations of 2017 (and the panoptic ones) from https://cocodataset.org/#download and unpack them "
    "as datasets/README.md shows. "
)


def register_coco() -> None:
    """Adds `coco_2017_{train,val}` (instances, 80 classes) and `coco_2017_{train,val}_panoptic` (133) to the catalogs;
    datasets that detectron2 has registered stay as they are.

    `..._panoptic_with_sem_seg`, the test set of Mask2Former's configs, are the same images and segments; here the
    label maps are made of the segments.
    """
    categories = read_categories(Path(__file__).with_name("coco_categories.json"))
    for split in ("train", "val"):
        images = DatasetPath(f"coco/{split}2017")
        instances = DatasetPath(f"coco/annotations/instances_{split}2017.json")
        register_instances(f"coco_2017_{split}", categories, instances, images, SOURCE)
        for suffix in ("panoptic", "panoptic_with_sem_seg"):
            register_panoptic(
                f"coco_2017_{split}_{suffix}",
                categories,
                DatasetPath(f"coco/annotations/panoptic_{split}2017.json"),
                DatasetPath(f"coco/panoptic_{split}2017"),
                images,
                instances,
                source=SOURCE,
            )
