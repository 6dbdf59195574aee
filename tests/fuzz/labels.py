"""Label maps from the folder to the mapper and to the evaluator: spoilt files, and good ones of wrong contents."""

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from fasegr.data.augmentation import RandomCrop, ResizeCropFlip, ResizeShortestEdge
from fasegr.data.dataset_mappers import SemanticMapper
from fasegr.data.datasets.folder import load_folder, read_classes
from fasegr.data.image_io import check_label_values
from fasegr.data.semantic_labels import semantic_labels
from tests.fuzz.mutation import spoil, with_png_checksums

SIZE = (43, 61)


def prepare(folder: Path) -> SemanticMapper:
    resize, crop = ResizeShortestEdge((24, 32), 64, "choice"), RandomCrop("absolute", (24, 24), 0.75, 255)
    return SemanticMapper(ResizeCropFlip(resize, crop, None, "horizontal", 32), 4)


def make(shared, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    numbers = np.random.default_rng(rng.randrange(2**32))
    image, labels = folder / "images" / "a.png", folder / "labels" / "a.png"
    for path in (image, labels):
        path.parent.mkdir()
    Image.fromarray(numbers.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(image)

    size = SIZE if rng.random() < 0.8 else rng.choice(((61, 43), (1, 1), (43, 60), (200, 300)))
    highest = rng.choice((2, 4, 4, 5, 256))
    form = rng.choice(("L", "L", "L", "P", "I;16", "RGB", "1", "LA"))
    values = numbers.integers(0, highest, size)
    values[numbers.random(size) < 0.2] = 255
    if form in ("L", "P"):
        picture = Image.fromarray(values.astype(np.uint8), form)
    elif form == "I;16":
        picture = Image.fromarray((values * rng.choice((1, 1, 257))).astype(np.uint16))
    else:
        picture = Image.fromarray(values.astype(np.uint8)).convert(form)
    out = io.BytesIO()
    picture.save(out, "PNG", bits=rng.choice((1, 2, 4, 8))) if form == "P" else picture.save(out, "PNG")
    data = out.getvalue()
    if rng.random() < 0.5:
        data = spoil(data, rng)
        data = with_png_checksums(data) if rng.random() < 0.7 else data
    labels.write_bytes(data)

    classes = folder / "classes.txt"
    text = b"".join(b"class %d, %d %d 9\n" % (i, i, 2 * i) for i in range(4))
    classes.write_bytes(spoil(text, rng) if rng.random() < 0.3 else text)
    return f"{form}, values below {highest}, {size}", [str(labels), str(classes)]


def read(mapper: SemanticMapper, folder: Path) -> str:
    read_classes(folder / "classes.txt")
    (record,) = load_folder("mine", folder / "images", folder / "labels")
    mapper(record, np.random.default_rng(0))
    labels = semantic_labels(record)
    check_label_values(labels, 4, 255, record["sem_seg_file_name"])
    return "a sample and its truth"
