"""Which classes the training images show: one that they never show is never learnt, and nothing else would say so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from fasegr.data.datasets.coco_json import without_crowds
from fasegr.data.image_io import check_label_values, label_histogram, open_file
from fasegr.data.semantic_labels import label_source, semantic_labels

__all__ = ["Presence", "count_classes", "missing_classes", "warn_of_missing_classes"]

logger = logging.getLogger(__name__)

_NAMED = 5
_PALETTES = 20  # label files whose palettes are compared with the list of classes


class Presence(NamedTuple):
    """pixels: of each class in the images that were looked at; ignored: pixels without a class. complete: whether
    these are all images, or the search ended when every class was found."""

    pixels: np.ndarray
    ignored: int
    images: int
    complete: bool


def count_classes(records: Sequence[dict], num_classes: int, ignore_label: int, workers: int = 2) -> Presence:
    """Pixels by class, in a random order of the images, until every class has one.

    So a sound dataset costs a few images, and only one that lacks a class all of them. Raises BadFile for a label map
    that cannot be read or holds other values.
    """
    order = np.random.default_rng(0).permutation(len(records))
    pixels, ignored, images = np.zeros(num_classes, np.int64), 0, 0

    def count(i: int) -> np.ndarray:
        record = records[i]
        labels = semantic_labels(record, ignore_label)
        check_label_values(labels, num_classes, ignore_label, label_source(record))
        return label_histogram(labels)

    # Chunks, since a pool would read on when all classes are found.
    chunks = [order[i : i + 16 * workers] for i in range(0, len(order), 16 * workers)]
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(
            total=len(records), desc="looking for classes without pixels", unit="image", delay=3, mininterval=0.5
        ) as progress,
    ):
        for chunk in chunks:
            for counts in pool.map(count, chunk.tolist()):
                pixels += np.pad(counts, (0, max(0, num_classes - len(counts))))[:num_classes]
                ignored += int(counts[ignore_label]) if ignore_label < len(counts) else 0
                images += 1
            progress.update(len(chunk))
            if (pixels > 0).all():
                break
    return Presence(pixels, ignored, images, images == len(records))


def missing_classes(counts: np.ndarray) -> list[int]:
    return np.flatnonzero(np.asarray(counts) == 0).tolist()


def warn_of_missing_classes(
    name: str,
    records: Sequence[dict],
    class_names: Sequence[str],
    colours: Sequence[Sequence[int]] = (),
    ignore_label: int = 255,
    semantic: bool = True,
) -> None:
    """Log a warning where classes of the list have no pixel in `records`, or no object if not `semantic`; and one where
    the palettes of label files have the list's colours in another order. name: of the datasets, for the message.
    """
    if semantic and all(label_source(record) for record in records):
        _warn_of_palettes(name, records, class_names, colours)
        presence = count_classes(records, len(class_names), ignore_label)
        counts, unit = presence.pixels, "pixel"
    elif all("annotations" in record for record in records):
        counts, unit = _objects(records, len(class_names)), "object"
    else:
        return
    missing = missing_classes(counts)
    if not missing:
        return
    named = ", ".join(f"{class_names[i]} ({i})" for i in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    present = sorted(set(range(len(class_names))) - set(missing), key=lambda i: -counts[i])
    have = ", ".join(f"{class_names[i]} ({i}) {counts[i]}" for i in present[:_NAMED]) or "none"
    have += f" and {len(present) - _NAMED} more" if len(present) > _NAMED else ""
    message = (
        f"{len(missing)} of {len(class_names)} classes have no {unit} in the {len(records)} images of {name}, so they "
        f"are never learnt: {named}{more}. {unit.capitalize()}s of the others: {have}."
    )
    if unit == "pixel":
        share = 100 * presence.ignored / max(1, presence.ignored + counts.sum())
        message += f" {share:.1f} % of the pixels are ignored ({ignore_label})."
        message += _likely_reason(missing, present, presence.ignored, ignore_label)
    logger.warning(message)


def _likely_reason(missing: list[int], present: list[int], ignored: int, ignore_label: int) -> str:
    if missing[0] == 0 and present:
        return (
            " Class 0 is missing: do the labels count from 1? DATASETS.FOLDER.LABEL_MAP from_one reads them (0 is "
            "ignored then); otherwise the names are one off"
        )
    if present == [0] and ignored and ignore_label == 255:
        return (
            " Are the label maps masks of 0 and 255? DATASETS.FOLDER.LABEL_MAP [[0, CLASS], [255, CLASS]] says which "
            "classes these are; without it 255 is ignored"
        )
    return " If that is not intended, compare the values of the label maps with the list of classes"


def _objects(records: Sequence[dict], num_classes: int) -> np.ndarray:
    counts = np.zeros(num_classes, np.int64)
    for record in records:
        for entry in without_crowds(record["annotations"]):
            if entry["category_id"] < num_classes:
                counts[entry["category_id"]] += 1
    return counts


def _warn_of_palettes(
    name: str, records: Sequence[dict], class_names: Sequence[str], colours: Sequence[Sequence[int]]
) -> None:
    """A palette that has the colours of the list, but at other numbers, is evidence that the classes are mixed up."""
    if not colours:
        return
    by_colour = {tuple(colour): i for i, colour in enumerate(colours)}
    for path, palette in _palettes(records):
        others = {
            index: by_colour[colour]
            for index, colour in enumerate(palette[: len(class_names)])
            if colour in by_colour and by_colour[colour] != index and colour != tuple(colours[index])
        }
        if len(others) > 1:
            index, label = next(iter(others.items()))
            logger.warning(
                "%s: the palette of %s paints %d values in the colours that the list of classes gives to others: value "
                "%d, which is %s here, has the colour of %s. If the colours are right, DATASETS.FOLDER.LABEL_MAP "
                "colours reads the label maps by them",
                *(name, path, len(others), index, class_names[index], class_names[label]),
            )
            return


def _palettes(records: Sequence[dict]) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    for record in records[:: max(1, len(records) // _PALETTES)]:
        path = record.get("sem_seg_file_name")
        if path is None or record.get("label_map") is not None:
            continue
        with open_file(path) as image:
            values = image.getpalette() if image.mode == "P" else None
        if values:
            yield path, [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]
