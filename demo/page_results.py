"""What the page shows of a picture: segments, confidence, where queries look, and files to download."""

from __future__ import annotations

import base64
import io
import tempfile
import time
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from fasegr import Predictor
from fasegr.d2 import CfgNode, MetadataCatalog
from fasegr.evaluation.calibration import confidence
from fasegr.evaluation.labels import predicted_labels
from fasegr.evaluation.leave_out import leave_out
from fasegr.evaluation.prediction_files import write_label_png
from fasegr.evaluation.prediction_writer import PredictionFiles, categories_of
from fasegr.modeling import ops
from fasegr.visualization.attention import (
    AttentionRecord,
    Target,
    attention_panels,
    predict_with_attention,
)
from fasegr.visualization.objects import class_list, drawn_kind, object_colors, visible_objects

__all__ = ["PageModel", "Segmentation", "jpeg", "view_size"]

LONGEST_VIEW = 1280  # pixels of the longer side of what the page shows; downloads have the size of the picture
PANEL_WIDTH = 320
MIN_SCORE = 0.5  # of an instance
NOTHING = 0xFFFF  # in a map of segments


class Segmentation(NamedTuple):
    """A model's result for a picture.

    segments: for each of them `name`, `label` (class index), `color` (RGB), `area` in pixels, and of instances `score`.
    index: (H, W) uint16, the segment of each pixel, NOTHING for none. sure: (H, W) uint8, the confidence of each pixel
    in steps of 1 / 255, None if the model gives no scores. result: the segmentor's, without its scores.
    """

    segments: list[dict[str, Any]]
    index: np.ndarray
    sure: np.ndarray | None
    result: dict[str, Any]
    seconds: float

    @property
    def nbytes(self) -> int:
        masks = self.result["instances"].pred_masks.numel() if "instances" in self.result else 0
        return 2 * self.index.nbytes + (0 if self.sure is None else self.sure.nbytes) + masks


class PageModel:
    """One of the models of the page."""

    def __init__(self, name: str, cfg: CfgNode):
        """Raises as `Predictor`. Of models that find objects, semantic scores are not computed."""
        test = cfg.MODEL.MASK_FORMER.TEST
        if test.PANOPTIC_ON or test.INSTANCE_ON:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT = "labels"
        self.name = name
        self.predictor = Predictor(cfg)
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0]) if cfg.DATASETS.TEST else {}
        if class_list(metadata)[0] is None:
            metadata = {"stuff_classes": self.predictor.class_names}
        self._categories = categories_of(metadata, lambda number: self.predictor.colors)
        # one pass over the whole picture, which sliding windows and test-time augmentation do not make
        self.shows_attention = hasattr(self.predictor.model, "sem_seg_head")
        self._only_semantic = not (test.PANOPTIC_ON or test.INSTANCE_ON) or cfg.TEST.AUG.ENABLED

    @torch.inference_mode()
    def segment(self, image: Image.Image) -> Segmentation:
        start = time.perf_counter()
        sure = None
        if self._only_semantic and hasattr(self.predictor.model, "score_tiles"):
            labels, sure = self._labels_and_confidence(image)
            result = {"sem_seg_labels": labels}
        else:
            result = _on_cpu(self.predictor(image))
            if "sem_seg" in result:
                labels = predicted_labels(result)
                sure = _in_steps(confidence(result.pop("sem_seg"), labels)).numpy()
                result["sem_seg_labels"] = labels
        if "instances" in result:
            result |= leave_out({"instances": result["instances"]}, MIN_SCORE)
        seconds = time.perf_counter() - start
        return Segmentation(*self._segments(result), sure, result, seconds)

    def _labels_and_confidence(self, image: Image.Image) -> tuple[torch.Tensor, np.ndarray]:
        """The predictor's labels, and how sure they are, from strips of the scores, which are too large to keep."""
        (tiles,) = self.predictor.model.score_tiles([self.predictor.sample(image)])
        labels, sure = None, torch.empty(image.height, image.width, dtype=torch.uint8)
        for rows, scores in tiles:
            classes = ops.class_argmax(scores)
            if labels is None:
                labels = torch.empty(image.height, image.width, dtype=classes.dtype)
            labels[rows] = classes.cpu()
            sure[rows] = _in_steps(confidence(scores, classes)).cpu()
        return labels, sure.numpy()

    def _segments(self, result: dict[str, Any]) -> tuple[list[dict[str, Any]], np.ndarray]:
        names, colors = self.predictor.class_names, self.predictor.colors
        if drawn_kind(result) == "sem_seg_labels":
            labels = predicted_labels(result).numpy()
            classes, index, areas = np.unique(labels, return_inverse=True, return_counts=True)
            index = index.reshape(labels.shape)
            shades, scores = colors[classes], None
        else:
            index, classes, _ = visible_objects(result, names, MIN_SCORE)
            areas = np.bincount(index[index >= 0], minlength=len(classes))
            shades = object_colors(colors, classes)
            scores = result["instances"].scores.tolist() if drawn_kind(result) == "instances" else None
        segments = [
            {"name": names[label], "label": int(label), "color": color.tolist(), "area": int(area)}
            | ({} if scores is None else {"score": round(scores[i], 3)})
            for i, (label, color, area) in enumerate(zip(classes, shades, areas, strict=True))
        ]
        return segments, index.astype(np.uint16)  # -1 becomes NOTHING

    def attention(self, image: Image.Image) -> AttentionRecord:
        """Where the queries look in the last layers, and what they predict; a second pass through the model."""
        record = predict_with_attention(self.predictor, image, min(PANEL_WIDTH, max(64, image.width)))
        nothing = torch.empty(0)
        last_round = [
            layer._replace(
                attention=layer.attention.cpu(), positional=layer.positional.cpu(), query_pos=nothing, key_pos=nothing
            )
            for layer in record.layers[-4:]  # has a layer of each level
        ]
        return record._replace(layers=last_round, mask_probs=record.mask_probs.half())

    def panels(self, record: AttentionRecord, found: Segmentation, x: float, y: float) -> dict[str, Any]:
        """Pictures of where the query looks that predicts the segment at (x, y), shares of width and height. Raises
        ValueError where there is no segment."""
        height, width = found.index.shape
        number = found.index[min(int(y * height), height - 1), min(int(x * width), width - 1)]
        if number == NOTHING:
            raise ValueError("nothing is predicted at this point; choose a point inside a segment")
        segment = found.segments[number]
        panel = (record.image.height, record.image.width)
        row, column = min(int(y * panel[0]), panel[0] - 1), min(int(x * panel[1]), panel[1] - 1)
        at_point = record.class_probs[:, segment["label"]] * record.mask_probs[:, row, column].float()
        query = int(at_point.argmax())  # that which has most of this class's score here
        target = Target(segment["name"], segment["label"], sampled(found.index, panel) == number)
        panels = attention_panels(record, target, query, self.predictor.colors)
        return {
            "query": query,
            "name": segment["name"],
            "panels": [
                {"title": panel.title, "note": panel.note, "image": _data_url(jpeg(panel.image))} for panel in panels
            ],
        }

    def overlay(self, image: Image.Image, found: Segmentation, alpha: float, hidden: Collection[int]) -> bytes:
        """A PNG of the picture with its segments, but those of `hidden` classes."""
        result = leave_out(found.result, classes=hidden) if hidden else found.result
        data = io.BytesIO()
        self.predictor.draw(image, result, alpha, MIN_SCORE).save(data, "PNG")
        return data.getvalue()

    def labels(self, found: Segmentation) -> bytes:
        """A PNG of class indices: with the colours of the classes up to 255 of these, else grey of 16 bits."""
        labels = {"sem_seg_labels": predicted_labels(found.result)}
        if len(self._categories) <= 255:
            return self._file("png", "picture", labels, "png/picture.png")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "labels.png"
            write_label_png(labels["sem_seg_labels"].numpy(), path, len(self._categories))
            return path.read_bytes()

    def coco(self, name: str, found: Segmentation) -> bytes:
        """COCO's JSON of the segments. name: of the picture."""
        return self._file("coco", name, found.result, "coco.json")

    def _file(self, kind: str, name: str, result: dict[str, Any], path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            files = PredictionFiles(folder, [kind], self._categories, MIN_SCORE)
            files.finish([files.add(name, "picture.png", result)])
            return (Path(folder) / path).read_bytes()


def _on_cpu(result: dict[str, Any]) -> dict[str, Any]:
    moved = {}
    for kind, value in result.items():
        moved[kind] = value._replace(segment_ids=value.segment_ids.cpu()) if kind == "panoptic_seg" else value.to("cpu")
    return moved


def _in_steps(share: torch.Tensor) -> torch.Tensor:
    return (255 * share).round().to(torch.uint8)


def view_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of the picture as the page shows it."""
    scale = min(1.0, LONGEST_VIEW / max(image.size))
    return max(1, round(scale * image.height)), max(1, round(scale * image.width))


def sampled(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) values at another size, nearest neighbour."""
    rows, columns = ((np.arange(n) + 0.5) * full / n for n, full in zip(size, values.shape, strict=True))
    return values[rows.astype(int)[:, None], columns.astype(int)]


def compressed(values: np.ndarray) -> bytes:
    """A map as little-endian bytes in gzip's format, for a response with that Content-Encoding."""
    little = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<")))
    compressor = zlib.compressobj(1, wbits=31)
    return compressor.compress(little.tobytes()) + compressor.flush()


def jpeg(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=88)
    return data.getvalue()


def _data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
