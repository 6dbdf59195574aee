"""Predictions in the formats of labelling tools and datasets: COCO, CVAT, LabelMe, label PNGs and confidence PNGs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from fasegr.d2 import DatasetCatalog, DatasetEvaluator, MetadataCatalog, comm
from fasegr.data.panoptic_png import write_segment_ids
from fasegr.evaluation.calibration import confidence
from fasegr.evaluation.labels import predicted_labels
from fasegr.evaluation.outlines import outlines
from fasegr.evaluation.prediction_files import label_file_names
from fasegr.utils.files import replacing, write_json

__all__ = ["FORMATS", "Category", "PredictionFiles", "PredictionWriter", "categories_of"]

FORMATS = ("coco", "cvat", "labelme", "png", "confidence")
MIN_SCORE = 0.5
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Category(NamedTuple):
    """A class. id: in COCO's files."""

    name: str
    id: int
    color: tuple[int, int, int]
    is_thing: bool


class Predicted(NamedTuple):
    """An object, segment or class of an image: its class index, score (None if it has none) and polygons (n, 2)."""

    label: int
    score: float | None
    polygons: list[np.ndarray]
    area: int
    box: list[float]  # x, y, width, height


class ImageEntry(NamedTuple):
    """What the files of a whole dataset hold of an image. image_id: None if it has none of its own."""

    image: str
    image_id: int | None
    size: tuple[int, int]
    objects: list[Predicted]
    segments: list[dict] | None
    png: str


class PredictionFiles:
    """Writes results into a folder: `add` those of each image, then `finish`.

    Files: coco.json and coco_panoptic.json with coco_panoptic/*.png, cvat.xml (CVAT for images 1.1), labelme/*.json,
    png/*.png (class indices with the colours of the classes; 255 where nothing is predicted) and confidence/*.png
    (grey, 0 to 255 for 0 to 100 %).

    Annotations are made from panoptic segments if the result has some, else from instances of a score of at least
    `min_score`, else from the classes of pixels: one annotation for each class. Polygons differ from the masks by
    less than 2 %; exact masks are in the files of TEST.SAVE_JSON.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        formats: Sequence[str],
        categories: Sequence[Category],
        min_score: float = MIN_SCORE,
    ):
        """min_score: of an instance that becomes an annotation."""
        self.min_score = min_score
        self.folder = Path(folder)
        self.formats = frozenset(formats)
        self.categories = list(categories)
        if "png" in formats and len(categories) > 255:
            raise ValueError(
                f"png (label PNGs with a palette) holds 255 classes at most, and there are {len(categories)}; "
                "TEST.SAVE_LABELS True writes 16 bits"
            )

    def add(self, image: str, name: str, result: Mapping[str, Any], image_id: int | None = None) -> ImageEntry:
        """Write the files of one image. image: its file; name: of its PNGs, relative to their folder, with .png.
        Returns what `finish` needs of it."""
        ids, segments = result.get("panoptic_seg", (None, None))
        ids = None if ids is None else ids.cpu().numpy()
        objects, size = self._objects(result, ids, segments)
        if "png" in self.formats:
            self._write_labels(self._path("png", name), result)
        if "confidence" in self.formats:
            self._write_confidence(self._path("confidence", name), result)
        entry = ImageEntry(image, image_id, size, objects, None, name)
        if "labelme" in self.formats:
            path = self._path("labelme", str(Path(name).with_suffix(".json")))
            write_json(self._labelme(entry, path), path, ensure_ascii=False, indent=1)
        if "coco" in self.formats and ids is not None:
            write_segment_ids(self._path("coco_panoptic", name), ids)
            entry = entry._replace(segments=[self._segment(ids, segment) for segment in segments])
        return entry

    def finish(self, entries: Sequence[ImageEntry]) -> None:
        """Write the files of all images."""
        self.folder.mkdir(parents=True, exist_ok=True)
        root = os.path.commonpath([os.path.dirname(entry.image) for entry in entries]) if entries else ""
        names = [os.path.relpath(entry.image, root or os.curdir) for entry in entries]
        if "coco" in self.formats:
            self._write_coco(entries, names)
        if "cvat" in self.formats:
            self._write_cvat(entries, names)

    def _path(self, kind: str, name: str) -> Path:
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _objects(
        self, result: Mapping[str, Any], ids: np.ndarray | None, segments: Sequence[dict] | None
    ) -> tuple[list[Predicted], tuple[int, int]]:
        needed = self.formats & {"coco", "cvat", "labelme"}
        if ids is not None:
            size = ids.shape
            found = ((s["category_id"], None, ids == s["id"]) for s in segments) if needed else ()
        elif "instances" in result:
            instances = result["instances"]
            size = tuple(instances.pred_masks.shape[-2:])
            kept = (instances.scores >= self.min_score).nonzero()[:, 0].tolist() if needed else ()
            found = (
                (int(instances.pred_classes[i]), float(instances.scores[i]), instances.pred_masks[i].cpu().numpy())
                for i in kept
            )
        else:
            labels = predicted_labels(result).cpu().numpy()
            size = labels.shape
            found = ((int(c), None, labels == c) for c in np.unique(labels) if c >= 0) if needed else ()
        return [self._predicted(*each) for each in found], tuple(map(int, size))

    def _predicted(self, label: int, score: float | None, mask: np.ndarray) -> Predicted:
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return Predicted(label, score, outlines(mask), int(mask.sum()), coco_mask.toBbox(code).tolist())

    def _segment(self, ids: np.ndarray, segment: Mapping[str, Any]) -> dict:
        mask = ids == segment["id"]
        box = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8))).tolist()
        category = self.categories[segment["category_id"]].id
        return {"id": segment["id"], "category_id": category, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}

    def _write_labels(self, path: Path, result: Mapping[str, Any]) -> None:
        image = Image.fromarray(predicted_labels(result).cpu().numpy().astype(np.uint8), "P")
        colors = np.full((256, 3), 255, np.uint8)
        colors[: len(self.categories)] = [category.color for category in self.categories]
        image.putpalette(colors.tobytes())
        image.save(path)

    def _write_confidence(self, path: Path, result: Mapping[str, Any]) -> None:
        scores = result["sem_seg"]
        sure = confidence(scores, predicted_labels({"sem_seg": scores}))  # also where labels are left out
        Image.fromarray((255 * sure).round().byte().cpu().numpy()).save(path)

    def _labelme(self, entry: ImageEntry, path: Path) -> dict:
        shapes = [
            {
                "label": self.categories[each.label].name,
                "points": polygon.round(2).tolist(),
                "group_id": group if len(each.polygons) > 1 else None,
                "description": "" if each.score is None else f"score {each.score:.3f}",
                "shape_type": "polygon",
                "flags": {},
            }
            for group, each in enumerate(entry.objects, start=1)
            for polygon in each.polygons
        ]
        return {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.relpath(entry.image, path.parent),
            "imageData": None,
            "imageHeight": entry.size[0],
            "imageWidth": entry.size[1],
        }

    def _write_coco(self, entries: Sequence[ImageEntry], names: Sequence[str]) -> None:
        own = [entry.image_id for entry in entries]
        numbers = own if None not in own and len(set(own)) == len(own) else range(1, len(own) + 1)
        images = [
            {"id": number, "file_name": name, "height": entry.size[0], "width": entry.size[1]}
            for number, name, entry in zip(numbers, names, entries, strict=True)
        ]
        categories = [
            {"id": c.id, "name": c.name, "supercategory": "", "isthing": int(c.is_thing), "color": list(c.color)}
            for c in self.categories
        ]
        annotations: list[dict] = []
        for number, entry in zip(numbers, entries, strict=True):
            for each in entry.objects:
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": self.categories[each.label].id,
                    "segmentation": [polygon.round(2).ravel().tolist() for polygon in each.polygons],
                    "area": each.area,
                    "bbox": each.box,
                    "iscrowd": 0,
                }
                if each.polygons:
                    annotations.append(annotation | ({} if each.score is None else {"score": each.score}))
        whole = {"info": {}, "licenses": [], "images": images, "categories": categories}
        write_json(whole | {"annotations": annotations}, self.folder / "coco.json", ensure_ascii=False)
        if any(entry.segments is not None for entry in entries):
            segments = [
                {"image_id": number, "file_name": entry.png, "segments_info": entry.segments}
                for number, entry in zip(numbers, entries, strict=True)
            ]
            write_json(whole | {"annotations": segments}, self.folder / "coco_panoptic.json", ensure_ascii=False)

    def _write_cvat(self, entries: Sequence[ImageEntry], names: Sequence[str]) -> None:
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
        labels = ElementTree.SubElement(task, "labels")
        for category in self.categories:
            label = ElementTree.SubElement(labels, "label")
            ElementTree.SubElement(label, "name").text = _xml(category.name)
            ElementTree.SubElement(label, "color").text = "#{:02x}{:02x}{:02x}".format(*category.color)
            ElementTree.SubElement(label, "attributes")
        for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
            height, width = entry.size
            image = ElementTree.SubElement(
                root, "image", {"id": str(i), "name": _xml(name), "width": str(width), "height": str(height)}
            )
            for group, each in enumerate(entry.objects, start=1):
                for polygon in each.polygons:
                    attributes = {"label": _xml(self.categories[each.label].name), "source": "auto", "occluded": "0"}
                    attributes["points"] = ";".join(f"{x:.2f},{y:.2f}" for x, y in polygon)
                    attributes["z_order"] = "0"
                    if len(each.polygons) > 1:
                        attributes["group_id"] = str(group)
                    ElementTree.SubElement(image, "polygon", attributes)
        ElementTree.indent(root)
        with replacing(self.folder / "cvat.xml", "wb") as file:
            ElementTree.ElementTree(root).write(file, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Without characters that XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)


def categories_of(metadata: Any, palette: Callable[[int], np.ndarray]) -> list[Category]:
    """The classes of a dataset, with their ids in its own files, or from 1. palette: colours for n classes, where the
    metadata have none."""
    group = "stuff" if metadata.get("stuff_classes") is not None else "thing"
    names = metadata.get(f"{group}_classes")
    things = metadata.get("thing_dataset_id_to_contiguous_id", {})
    ids = {**metadata.get("stuff_dataset_id_to_contiguous_id", {}), **things}
    own = {contiguous: dataset for dataset, contiguous in ids.items()}
    given = metadata.get(f"{group}_colors")
    colors = palette(len(names)) if given is None else given
    is_thing = set(things.values())
    return [
        Category(name, own.get(i, i + 1), tuple(map(int, colors[i])), i in is_thing or not is_thing)
        for i, name in enumerate(names)
    ]


class PredictionWriter(DatasetEvaluator):
    """Writes the predictions for a dataset by `PredictionFiles` while it is evaluated, and scores nothing."""

    def __init__(
        self,
        dataset_name: str,
        folder: str | os.PathLike,
        formats: Sequence[str],
        palette: Callable[[int], np.ndarray],
    ):
        """palette: RGB colours for n classes, (n, 3), if the dataset has none."""
        self.files = PredictionFiles(folder, formats, categories_of(MetadataCatalog.get(dataset_name), palette))
        records = DatasetCatalog.get(dataset_name)
        self._ids = {record["file_name"]: record.get("image_id") for record in records}
        self._names = label_file_names(self._ids)
        self.reset()

    def reset(self) -> None:
        self._entries: list[ImageEntry] = []

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping[str, Any]]) -> None:
        for sample, output in zip(inputs, outputs, strict=True):
            file = sample["file_name"]
            image_id = self._ids[file]
            image_id = image_id if isinstance(image_id, int) else None
            self._entries.append(self.files.add(file, self._names[file], output, image_id))

    def evaluate(self) -> dict:
        parts = comm.gather(self._entries)
        if comm.is_main_process():
            self.files.finish(list(chain.from_iterable(parts)))
        return {}
