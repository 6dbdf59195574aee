"""Results of a segmentor over their image; objects are outlined, named and shaded one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fasegr.evaluation.labels import predicted_labels
from fasegr.visualization.figure_layout import fit_cell, image_grid
from fasegr.visualization.fonts import drawable_names
from fasegr.visualization.overlays import Colors, ImageLike, as_colors, overlay

__all__ = ["class_list", "draw_result", "drawn_kind", "object_colors", "object_table", "visible_objects"]

_MIN_SCORE = 0.5

# How far the objects of a class are from its colour, in turn: towards white (positive) or black.
_SHADES = (0, 0.4, -0.3, 0.2, -0.45, 0.6)


def class_list(metadata: Any) -> tuple[list[str] | None, Any]:
    """Names and colours of a dataset's classes: of all, or of the things if it has no stuff. None where the metadata
    have none."""
    group = "stuff" if metadata.get("stuff_classes") is not None else "thing"
    return metadata.get(f"{group}_classes"), metadata.get(f"{group}_colors")


def drawn_kind(result: Mapping[str, Any]) -> str:
    """Which entry of a result is drawn: panoptic segments if there are any, else instances, else semantic labels."""
    return next((kind for kind in ("panoptic_seg", "instances") if kind in result), "sem_seg_labels")


def draw_result(
    image: ImageLike,
    result: Mapping[str, Any],
    class_names: Sequence[str],
    colors: Colors | None = None,
    *,
    alpha: float = 0.5,
    min_score: float = _MIN_SCORE,
    legend: bool = True,
) -> Image.Image:
    """The image with a result painted over it, as `fasegr.visualization.overlays.overlay` does with label maps.

    result: of a segmentor, for this image. min_score: instances with a lower one are left out. legend: add one below.
    """
    colors, class_names = as_colors(colors, len(class_names)), drawable_names(class_names)
    if drawn_kind(result) == "sem_seg_labels":
        return overlay(image, predicted_labels(result), class_names, colors, alpha, None if legend else ())
    object_ids, classes, captions = visible_objects(result, class_names, min_score)
    shades = object_colors(colors, classes)
    entries = [(class_names[label], colors[label]) for label in sorted(set(classes))] if legend else ()
    return overlay(image, object_ids, captions, shades, alpha, entries)


def object_table(
    rows: Sequence[Sequence[Any]],
    class_names: Sequence[str],
    colors: Colors | None = None,
    *,
    titles: Sequence[str] = ("Image", "Truth", "Prediction"),
    cell_width: int = 480,
) -> Image.Image:
    """Rows of an image and its objects, drawn over it, in columns with titles, above a legend of their classes.

    rows: (image, result, ...) with panoptic segments or instances, one result for each title after the first.
    """
    colors, class_names = as_colors(colors, len(class_names)), drawable_names(class_names)
    cells, classes = [], set()
    for image, *results in rows:
        drawn = [draw_result(image, result, class_names, colors, legend=False) for result in results]
        cells.append([fit_cell(cell, cell_width) for cell in (Image.fromarray(np.asarray(image)), *drawn)])
        classes.update(*(visible_objects(result, class_names, _MIN_SCORE)[1] for result in results))
    return image_grid(cells, titles, [(class_names[label], colors[label]) for label in sorted(classes)], cell_width)


def visible_objects(
    result: Mapping[str, Any], class_names: Sequence[str], min_score: float
) -> tuple[np.ndarray, list[int], list[str]]:
    """The index of the object that each pixel shows, (H, W) with -1 for none; classes and captions of the objects.

    Where instances overlap, the smaller one is in front.
    """
    if "panoptic_seg" in result:
        segment_ids, segments = result["panoptic_seg"]
        segment_ids = _array(segment_ids)
        object_ids = np.full(segment_ids.shape, -1)
        for i, segment in enumerate(segments):
            object_ids[segment_ids == segment["id"]] = i
        classes = [segment["category_id"] for segment in segments]
        return object_ids, classes, [class_names[label] for label in classes]
    instances = result["instances"]
    kept = _array(instances.scores) >= min_score
    scores, labels, masks = (_array(v)[kept] for v in (instances.scores, instances.pred_classes, instances.pred_masks))
    object_ids = np.full(masks.shape[1:], -1)
    for i in np.argsort(-masks.sum((1, 2)), kind="stable"):
        object_ids[masks[i]] = i
    captions = [  # ground truth has a score of 1, which is not written
        class_names[label] if score == 1 else f"{class_names[label]} {100 * score:.0f}"
        for label, score in zip(labels, scores, strict=True)
    ]
    return object_ids, labels.tolist(), captions


def _array(values: Tensor) -> np.ndarray:
    return (values.float() if values.is_floating_point() else values).cpu().numpy()  # numpy has no bfloat16


def object_colors(colors: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """(N, 3) uint8: the colour of each object, a shade of its class's. colors: (C, 3). classes: of the objects."""
    shades = [_shade(colors[label], classes[:i].count(label)) for i, label in enumerate(classes)]
    return np.reshape(shades, (-1, 3)).astype(np.uint8)


def _shade(color: np.ndarray, index: int) -> np.ndarray:
    """The colour of the object of a class with that index, (3,) uint8."""
    shift = _SHADES[index % len(_SHADES)]
    end = 255 if shift > 0 else 0
    return np.round(color + abs(shift) * (end - color.astype(float))).astype(np.uint8)
