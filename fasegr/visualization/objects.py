"""Pictures of whatever a segmentor returns; of objects, each is outlined, named and shaded by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fasegr.evaluation.labels import predicted_labels
from fasegr.visualization.figure_layout import picture_table, scaled
from fasegr.visualization.overlays import Colors, Photo, overlay, palette

__all__ = ["class_list", "draw_result", "drawn_kind", "object_table"]

# How far the objects of a class are from its colour, in turn: towards white (positive) or black.
_SHADES = (0, 0.4, -0.3, 0.2, -0.45, 0.6)


def class_list(metadata: Any) -> tuple[list[str] | None, Any]:
    """Names and colours of the classes of a dataset: of all, or of the things where it has nothing else. None for what
    the metadata do not hold."""
    group = "stuff" if metadata.get("stuff_classes") is not None else "thing"
    return metadata.get(f"{group}_classes"), metadata.get(f"{group}_colors")


def drawn_kind(result: Mapping[str, Any]) -> str:
    """Which of a result's kinds is drawn: panoptic segments before instances, and these before semantic labels."""
    return next((kind for kind in ("panoptic_seg", "instances") if kind in result), "sem_seg_labels")


def draw_result(
    image: Photo,
    result: Mapping[str, Any],
    class_names: Sequence[str],
    colors: Colors | None = None,
    *,
    alpha: float = 0.5,
    min_score: float = 0.5,
    legend: bool = True,
) -> Image.Image:
    """The image with a result painted over, as `fasegr.visualization.overlays.overlay` does with label maps.

    result: of a segmentor, for this image. min_score: instances below it are left out. legend: put one below.
    """
    colors = palette(len(class_names)) if colors is None else np.asarray(colors, np.uint8)
    if drawn_kind(result) == "sem_seg_labels":
        return overlay(image, predicted_labels(result), class_names, colors, alpha, None if legend else ())
    owner, classes, captions = _objects(result, class_names, min_score)
    seen: dict[int, int] = {}  # objects of a class so far
    shades = np.empty((len(classes), 3), np.uint8)
    for i, label in enumerate(classes):
        shades[i] = _shade(colors[label], seen.get(label, 0))
        seen[label] = seen.get(label, 0) + 1
    entries = [(class_names[label], colors[label]) for label in sorted(seen)] if legend else ()
    return overlay(image, owner, captions, shades, alpha, entries)


def object_table(
    rows: Sequence[Sequence[Any]],
    class_names: Sequence[str],
    colors: Colors | None = None,
    *,
    titles: Sequence[str] = ("Image", "Truth", "Prediction"),
    cell_width: int = 480,
    alpha: float = 0.5,
    min_score: float = 0.5,
) -> Image.Image:
    """Rows of an image and its objects, drawn over it, in columns with titles, above a legend of the classes in them.

    rows: (image, result, ...) with panoptic segments or instances, as many results as there are titles after the first.
    alpha, min_score: of `draw_result`.
    """
    colors = palette(len(class_names)) if colors is None else np.asarray(colors, np.uint8)
    cells, classes = [], set()
    for image, *results in rows:
        pictures = [Image.fromarray(np.asarray(image))]
        for result in results:
            pictures.append(
                draw_result(image, result, class_names, colors, alpha=alpha, min_score=min_score, legend=False)
            )
            classes.update(_objects(result, class_names, min_score)[1])
        cells.append([scaled(picture, cell_width) for picture in pictures])
    return picture_table(cells, titles, [(class_names[label], colors[label]) for label in sorted(classes)], cell_width)


def _objects(
    result: Mapping[str, Any], class_names: Sequence[str], min_score: float
) -> tuple[np.ndarray, list[int], list[str]]:
    """Which object each pixel shows, (H, W) with -1 for none, and of each object its class and what is written on it.

    Of instances that overlap, the smaller one is in front.
    """
    if "panoptic_seg" in result:
        segment_ids, segments = result["panoptic_seg"]
        segment_ids = _array(segment_ids)
        owner = np.full(segment_ids.shape, -1)
        for i, segment in enumerate(segments):
            owner[segment_ids == segment["id"]] = i
        classes = [segment["category_id"] for segment in segments]
        return owner, classes, [class_names[label] for label in classes]
    found = result["instances"]
    kept = _array(found.scores) >= min_score
    scores, labels, masks = (_array(v)[kept] for v in (found.scores, found.pred_classes, found.pred_masks))
    owner = np.full(masks.shape[1:], -1)
    for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
        owner[masks[i]] = i
    captions = [
        class_names[label] if score == 1 else f"{class_names[label]} {100 * score:.0f}"  # what is certain is the truth
        for label, score in zip(labels, scores, strict=True)
    ]
    return owner, labels.tolist(), captions


def _array(values: Tensor) -> np.ndarray:
    return (values.float() if values.is_floating_point() else values).cpu().numpy()  # numpy has no bfloat16


def _shade(color: np.ndarray, number: int) -> np.ndarray:
    """The colour of the `number`-th object of a class, (3,) uint8."""
    shift = _SHADES[number % len(_SHADES)]
    end = 255 if shift > 0 else 0
    return np.round(color + abs(shift) * (end - color.astype(float))).astype(np.uint8)
