"""A dataset in COCO's formats, of random blobs with void and crowds, and predictions that are half right."""

import json
import uuid
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from scipy import ndimage

from fasegr.data.datasets.coco_json import Category, register_instances, register_panoptic
from fasegr.data.panoptic_png import write_segment_ids
from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation

# Ids in the files have gaps and are in no order of the classes, which are numbered as they stand here.
CATEGORIES = [
    Category(90, "sky", False, (0, 0, 250)),
    Category(3, "cat", True, (250, 0, 0)),
    Category(10, "grass", False, (0, 250, 0)),
    Category(7, "dog", True, (250, 250, 0)),
]
THINGS = (1, 3)


class Segment:
    """id: in the PNG. label: contiguous class."""

    def __init__(self, id: int, label: int, mask: np.ndarray, crowd: bool = False):
        self.id, self.label, self.mask, self.crowd = id, label, mask, crowd


class TinyCoco:
    """Registered as `self.instances` and `self.panoptic`, with `self.segments` of each image in `self.files`."""

    def __init__(self, root: Path, images: int = 4, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.root = root
        self.segments = [self._scene() for _ in range(images)]
        self.files = [str(root / "images" / f"{i}.jpg") for i in range(images)]
        for file, segments in zip(self.files, self.segments, strict=True):
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.rng.integers(0, 256, (*segments[0].mask.shape, 3), dtype=np.uint8)).save(file)
        self._write()
        self.instances, self.panoptic = f"instances_{uuid.uuid4().hex}", f"panoptic_{uuid.uuid4().hex}"
        register_instances(self.instances, CATEGORIES, root / "instances.json", root / "images")
        register_panoptic(
            self.panoptic,
            CATEGORIES,
            root / "panoptic.json",
            root / "panoptic",
            root / "images",
            root / "instances.json",
        )

    def _scene(self) -> list[Segment]:
        shape = tuple(self.rng.integers(60, 90, 2))
        noise = ndimage.gaussian_filter(self.rng.normal(size=(9, *shape)), (0, 4, 4))
        owner = noise.argmax(0)  # 0 is void
        ids = self.rng.choice(np.arange(1, 256**3), 8, replace=False)
        labels = [0, 2, 1, 1, 3, 3, 3, 1]
        return [Segment(int(ids[i]), labels[i], owner == i + 1, crowd=i >= 6) for i in range(8)]

    def _write(self) -> None:
        images, objects, annotations = [], [], []
        (self.root / "panoptic").mkdir(parents=True)
        for number, (file, segments) in enumerate(zip(self.files, self.segments, strict=True)):
            height, width = segments[0].mask.shape
            images.append({"id": 100 + number, "file_name": Path(file).name, "height": height, "width": width})
            infos = []
            for segment in segments:
                code = coco_mask.encode(np.asfortranarray(segment.mask, np.uint8))
                info = {
                    "id": segment.id,
                    "category_id": CATEGORIES[segment.label].id,
                    "area": int(segment.mask.sum()),
                    "iscrowd": int(segment.crowd),
                }
                infos.append(info)
                if segment.label in THINGS:
                    code = {"size": code["size"], "counts": code["counts"].decode()}
                    own = {"id": len(objects) + 1, "image_id": 100 + number, "segmentation": code, "bbox": [0, 0, 1, 1]}
                    objects.append(info | own)
            write_segment_ids(self.root / "panoptic" / f"{number}.png", self.ids(number))
            annotations.append({"image_id": 100 + number, "file_name": f"{number}.png", "segments_info": infos})
        kinds = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in CATEGORIES]
        things = [kind for kind in kinds if kind["isthing"]]
        for name, content, categories in (("instances", objects, things), ("panoptic", annotations, kinds)):
            text = json.dumps({"images": images, "annotations": content, "categories": categories})
            (self.root / f"{name}.json").write_text(text)

    def ids(self, image: int) -> np.ndarray:
        return sum(segment.id * segment.mask for segment in self.segments[image])

    def inputs(self, images=slice(None)) -> list[dict]:
        return [{"file_name": file} for file in self.files[images]]

    def found(self, image: int) -> Instances:
        """Things moved a little, some given the wrong class, and some that are not there. Contiguous classes."""
        masks, labels = [], []
        for segment in self.segments[image]:
            for shift in range(3):
                masks.append(np.roll(segment.mask, shift * self.rng.integers(-2, 3, 2), (0, 1)))
                labels.append(segment.label if segment.label in THINGS else self.rng.choice(THINGS))
        labels = np.where(self.rng.random(len(labels)) < 0.2, self.rng.choice(THINGS, len(labels)), labels)
        scores = torch.from_numpy(self.rng.permutation(len(labels)) / len(labels))
        return Instances(scores, torch.from_numpy(labels), torch.from_numpy(np.stack(masks)))

    def instance_outputs(self) -> list[dict]:
        """Contiguous classes as the dataset of instances counts them: only the things."""
        outputs = []
        for image in range(len(self.files)):
            found = self.found(image)
            classes = (found.pred_classes == THINGS[1]).long()
            outputs.append({"instances": Instances(found.scores, classes, found.pred_masks)})
        return outputs

    def semantic_outputs(self) -> list[dict]:
        """The classes of the segments, moved; void has class 0."""
        maps = (sum(s.label * s.mask for s in segments) for segments in self.segments)
        return [{"sem_seg_labels": torch.from_numpy(np.roll(labels, 2, 1))} for labels in maps]

    def panoptic_outputs(self) -> list[dict]:
        """Segments moved, merged, dropped, invented and given other classes."""
        outputs = []
        for image in range(len(self.files)):
            ids = np.roll(self.ids(image), self.rng.integers(-3, 4, 2), (0, 1))
            predicted, segments = np.zeros(ids.shape, np.int32), []
            for segment in self.segments[image]:
                if self.rng.random() < 0.1:
                    continue
                label = segment.label if self.rng.random() < 0.8 else int(self.rng.integers(4))
                predicted[ids == segment.id] = len(segments) + 1
                segments.append({"id": len(segments) + 1, "category_id": label, "isthing": label in THINGS})
            void = ids == 0
            if self.rng.random() < 0.7:
                predicted[void] = len(segments) + 1
                segments.append({"id": len(segments) + 1, "category_id": 1, "isthing": True})
            outputs.append({"panoptic_seg": PanopticSegmentation(torch.from_numpy(predicted), segments)})
        return outputs
