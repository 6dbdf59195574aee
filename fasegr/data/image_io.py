"""Reading images and label maps in all the formats that datasets have."""

import logging
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.utils.data
from PIL import Image

__all__ = [
    "BadFile",
    "Reading",
    "check_image_size",
    "check_label_size",
    "check_label_values",
    "configure_reading",
    "decode",
    "image_header",
    "image_size",
    "label_histogram",
    "label_size",
    "open_file",
    "open_image",
    "read_image",
    "read_label",
    "read_label_colours",
    "reading",
]

logger = logging.getLogger(__name__)

_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"com.adobe.xmp")  # where a PNG says it
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # "I": what some versions of Pillow open 16-bit PNGs as
_SCALED_GREYS = ("1", "L;2", "L;4")  # PNGs of less than 8 bits, whose values every reader stretches to 0..255
# Whatever a file is called, Pillow looks at its bytes, and knows formats that start other programs (EPS).
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000")
_READERS_RAISE = (  # for damaged files
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    *(EOFError, MemoryError, RuntimeError, struct.error, zlib.error),
)
_DAMAGED = "the image data is damaged or cut short"
_STORED_SIDEWAYS = (
    ". The image may be stored on its side, with a note in its EXIF data: label it as viewers show it, or set "
    "INPUT.USE_EXIF False to read images as they are stored"
)
_INVERSE = {  # of a turn by 90 degrees; the other changes undo themselves
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
_MAX_SAMPLE = 281  # TIFF tag: the largest value that a sample may have
_NARROW = (8, 12)  # bits that cameras put into 16


class BadFile(ValueError):
    """A file that cannot be used; the message names it and says what was expected."""


class Reading(NamedTuple):
    """How this process reads images: INPUT.MAX_PIXELS, BIT_DEPTH and USE_EXIF."""

    max_pixels: int = 178_956_970  # Pillow's own limit
    bit_depth: int = 0
    use_exif: bool = True


_reading = Reading()
_warned: set[str] = set()


def reading() -> Reading:
    return _reading


def configure_reading(settings: Reading) -> None:
    """Settings for all images that this process reads from now on. Processes that it starts without fork need a call of
    their own."""
    global _reading
    _reading = settings
    _warned.clear()
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, settings.max_pixels)  # above it Pillow warns, on stderr


@contextmanager
def _named(path: str | Path, problem: str, remedy: str) -> Iterator[None]:
    """Makes what Pillow and libpng raise for a bad file a BadFile that names it."""
    try:
        yield
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise BadFile(_too_large(path, pixels[0] if pixels else "too many")) from error
    except _READERS_RAISE as error:
        if _is_of_a_worker(error):
            raise
        raise BadFile(f"{path}: {problem} ({str(error) or type(error).__name__}); {remedy}") from error


def _is_of_a_worker(error: BaseException) -> bool:
    """Whether torch has raised it in the middle of reading, because a data worker was killed: no fault of the file."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _too_large(path: str | Path, pixels: str) -> str:
    return (
        f"{path}: has {pixels} pixels, more than INPUT.MAX_PIXELS {_reading.max_pixels}; raise that key if memory "
        "allows it (an image takes 3 bytes a pixel, and several times that while it is segmented; "
        "TEST.SLIDING_WINDOW.ENABLED True needs least), or cut the image into smaller ones"
    )


def open_file(path: str | Path) -> Image.Image:
    """An image of which only the header is read."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with _named(path, "cannot be read as an image", f"expected one of {', '.join(_FORMATS)}"):
        image = Image.open(path, formats=_FORMATS)
    if image.width * image.height > _reading.max_pixels:
        image.close()
        raise BadFile(_too_large(path, f"{image.width} x {image.height} = {image.width * image.height}"))
    return image


def decode(image: Image.Image, path: str | Path) -> Image.Image:
    """`image`, of `open_file`, with its pixels."""
    with _named(path, _DAMAGED, "restore the file"):
        image.load()
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return Image.Image.getexif(image).get(_ORIENTATION, 1)  # that of a PNG would decode it
    except _READERS_RAISE as error:
        if _is_of_a_worker(error):
            raise
        return 1  # damaged EXIF says nothing about the pixels; the image is assumed to be upright


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the pixels that Pillow reads those of INPUT.USE_EXIF."""
    turn = _UPRIGHT.get(_orientation(image))
    if image.format == "TIFF":  # which Pillow turns itself
        return None if _reading.use_exif else _INVERSE.get(turn, turn)
    return turn if _reading.use_exif else None


class Header(NamedTuple):
    """size: (height, width) of the image as it is read. orientation: EXIF's, 1 to 8."""

    size: tuple[int, int]
    orientation: int


def image_header(path: str | Path) -> Header:
    """Raises as `open_image` for a file without one, and for a PNG that is cut short."""
    with open_file(path) as image:
        if image.format == "PNG" and _turned_after_pixels(path):
            decode(image, path)
        width, height = image.size
        orientation = _orientation(image)
        sideways = _turn(image) is not None and orientation in _SIDEWAYS
        return Header((width, height) if sideways else (height, width), orientation)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the image as it is read, upright unless INPUT.USE_EXIF is False, from the header. Raises as
    `image_header`."""
    return image_header(path).size


def _turned_after_pixels(path: str | Path) -> bool:
    """Whether a PNG says how the camera was held after its pixels, as ImageMagick writes it, where Pillow finds it only
    by decoding them. Only the first bytes of its chunks are read. Raises BadFile if it ends amid its pixels."""
    with open(path, "rb", buffering=0) as file:
        end, position, in_pixels = os.fstat(file.fileno()).st_size, 8, False
        while position < end:
            start = os.pread(file.fileno(), 32, position)
            kind = start[4:8]
            if in_pixels and kind != b"IDAT" and any(word in start for word in _PNG_ORIENTATION):
                return True
            in_pixels |= kind == b"IDAT"
            position += 12 + int.from_bytes(start[:4], "big")
            if kind == b"IDAT" and position > end:
                raise BadFile(f"{path}: {_DAMAGED} ({end} bytes, expected {position} or more); restore the file")
    return False


def check_image_size(path: str | Path, size: tuple[int, int], stated: tuple[int, int]) -> None:
    """Raises BadFile if an image is not of the size that its annotations state; sizes: (height, width), upright."""
    if tuple(size) == tuple(stated):
        return
    raise BadFile(
        f"{path}: is {size[1]} x {size[0]} (width x height), but its annotations are for {stated[1]} x {stated[0]}; "
        f"images and annotations must be of one release{_STORED_SIDEWAYS if tuple(size) == tuple(stated)[::-1] else ''}"
    )


def open_image(path: str | Path) -> Image.Image:
    """The image, upright unless INPUT.USE_EXIF is False, as a PIL image in mode RGB.

    Grey is repeated, transparency is dropped, a palette is looked up, and 16 bits, or the INPUT.BIT_DEPTH of them that
    are used, are scaled to 8. Raises FileNotFoundError, or BadFile if the file is damaged or its pixels have no known
    range.
    """
    with open_file(path) as opened:
        is_tiff = opened.format == "TIFF"
        deep = ";16" in str(opened.tile[0][3]) if opened.tile else False
        largest_sample = opened.tag_v2.get(_MAX_SAMPLE) if is_tiff else None
        turn = _turn(opened) if is_tiff else None  # a TIFF loses the note when it is decoded
        image = decode(opened, path)
        turn = turn if is_tiff else _turn(opened)  # a PNG may only have it then
        if image.mode in _SIXTEEN_BIT:
            image = Image.fromarray(_to_eight_bits(np.asarray(image), path, largest_sample))
        elif image.mode == "F":
            raise BadFile(f"{path}: holds floating-point values; expected 8 or 16 bits a channel")
        elif deep:
            image = _deep_colours(image, opened.format, path)
        if image.mode != "RGB":  # which `convert` would copy
            with _named(path, f"colours of mode {image.mode} cannot be converted to RGB", "save it as RGB"):
                image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _to_eight_bits(values: np.ndarray, path: str | Path, largest_sample: object = None) -> np.ndarray:
    """uint8 of values of up to 16 bits, by INPUT.BIT_DEPTH; 0 takes 12 (or 8) bits for 16 where no value needs more."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise BadFile(f"{path}: its values are {low}..{high}; an image has 8 or 16 bits a channel")
    bits = _reading.bit_depth
    if bits and high >= 2**bits:
        raise BadFile(f"{path}: has the value {high}, more than INPUT.BIT_DEPTH {bits} allows (0..{2**bits - 1})")
    if not bits:
        stated = largest_sample[0] if isinstance(largest_sample, tuple) and largest_sample else largest_sample
        if isinstance(stated, int) and high <= stated < 65536:
            bits = stated.bit_length()
        else:
            bits = next((narrow for narrow in _NARROW if high < 2**narrow), 16) if high else 16
            if bits < 16:
                _warn_once(
                    f"{path}: is a 16-bit image whose values are below {2**bits}; it, and others like it, are read as "
                    f"{bits}-bit images. INPUT.BIT_DEPTH {bits} says so for all 16-bit images (others become errors), "
                    "16 reads them as they are, nearly black"
                )
    most = 2**bits - 1
    return ((values.astype(np.int64) * 255 + most // 2) // most).astype(np.uint8)


def _deep_colours(image: Image.Image, image_format: str | None, path: str | Path) -> Image.Image:
    """A colour image of 16 bits a channel, of which Pillow has read the upper eight."""
    if image_format == "PNG":
        return Image.fromarray(_to_eight_bits(_png_samples(image, path), path))
    high = int(np.asarray(image).max(initial=0))
    if 0 < high < 2**12 >> 8 and _reading.bit_depth in (0, 8, 12):
        raise BadFile(
            f"{path}: has 16 bits a channel and values below {(high + 1) << 8}, as of a camera of 12 bits; of colours, "
            "only the upper 8 bits can be read, which are nearly black. Save it with 8 bits or as PNG; if it is only "
            "dark, INPUT.BIT_DEPTH 16 reads it"
        )
    return image


def _png_samples(image: Image.Image, path: str | Path) -> np.ndarray:
    """uint16 (H, W, 3) of a PNG of 16 bits a channel, of which Pillow has read the upper eight of each into `image`.

    The lower ones are what Pillow's reader for the other order of bytes takes for the upper ones.
    """
    with open_file(path) as other:
        codec, extents, offset, layout = other.tile[0]
        grey = layout == "LA;16B"  # has no such reader; its four bytes are taken for four channels
        other.tile = [(codec, extents, offset, "RGBA" if grey else layout.replace("16B", "16L"))]
        lower = np.asarray(decode(other, path))
    lower = lower[:, :, [1, 1, 1]] if grey else lower[:, :, :3]
    return np.asarray(image)[:, :, :3].astype(np.uint16) << 8 | lower


def _warn_once(message: str) -> None:
    """Once in a process, and not in each data worker."""
    kind = "bits"
    worker = torch.utils.data.get_worker_info()
    if kind not in _warned and (worker is None or worker.id == 0):
        logger.warning(message)
    _warned.add(kind)


def read_image(path: str | Path) -> np.ndarray:
    """`open_image` as an array: uint8 (H, W, 3), RGB."""
    return np.array(open_image(path))


def _is_lossy(image: Image.Image, path: str | Path) -> bool:
    """Whether the file's compression changes values."""
    if image.format == "WEBP":
        with open(path, "rb") as file:
            return b"VP8L" not in file.read(2**16)
    return image.format in ("JPEG", "MPO", "JPEG2000") or "jpeg" in str(image.info.get("compression"))


def _open_label(path: str | Path, holds: str = "numbers") -> Image.Image:
    """holds: "numbers" of classes, or what a LABEL_MAP translates: "values" (grey images too) or "colours"."""
    image = open_file(path)
    raw_mode = image.tile[0][3] if image.tile else image.mode
    if isinstance(raw_mode, tuple):
        raw_mode = raw_mode[0]
    problem = None
    if _is_lossy(image, path):
        image.close()
        raise BadFile(
            f"{path}: is a {image.format} file whose compression changes values, so its labels are no longer those "
            "that were drawn; export them again as PNG or TIFF (converting this file does not bring them back)"
        )
    if holds == "numbers":
        if image.mode in ("1", "L") and raw_mode in _SCALED_GREYS:
            problem = "is a grey image of less than 8 bits, whose values programs read differently"
        elif image.mode not in ("L", "P", *_SIXTEEN_BIT):
            problem = f"has colours or transparency (mode {image.mode})"
    elif image.mode not in ("1", "L", "P", "LA", "RGB", "RGBA", *(_SIXTEEN_BIT if holds == "values" else ())):
        problem = f"has the mode {image.mode}, whose {holds} cannot be looked up"
    if problem:
        image.close()
        raise BadFile(
            f"{path}: {problem}; a label map has one channel (8 or 16 bits, or a palette) "
            "whose values are class numbers, counted from 0; DATASETS.FOLDER.LABEL_MAP says what other values, or "
            "colours, mean (black and white are 0 and 255 there)"
        )
    return image


def label_size(path: str | Path, holds: str = "numbers") -> tuple[int, int]:
    """(height, width) of a label map, read from the header. Raises as `read_label` for a wrong kind of file, and for a
    PNG that is cut short."""
    with _open_label(path, holds) as image:
        if image.format == "PNG":
            _turned_after_pixels(path)
        return image.height, image.width


def read_label(path: str | Path, holds: str = "numbers") -> np.ndarray:
    """A label map: (H, W) of class numbers, uint8, or uint16 from 16-bit files. Of a palette image, the indices.

    EXIF is ignored: a label map is drawn for the upright image. holds: "values" also takes black and white images, as
    0 and 255, and grey ones that are stored as colours.
    """
    with _open_label(path, holds) as opened:
        image = decode(opened, path)
        if image.mode == "1":
            image = image.convert("L")
        labels = np.array(image)
    if labels.ndim == 3:
        grey = labels[..., 0]
        if labels.shape[2] > 2 and ((labels[..., 1] != grey).any() or (labels[..., 2] != grey).any()):
            raise BadFile(f"{path}: has colours; give DATASETS.FOLDER.LABEL_MAP colours [R, G, B], not single values")
        labels = np.ascontiguousarray(grey)
    if labels.dtype == np.uint8:
        return labels
    if labels.min(initial=0) < 0 or labels.max(initial=0) > 65535:
        raise BadFile(f"{path}: its values are {labels.min()}..{labels.max()}; expected class numbers of 0..65535")
    return labels.astype(np.uint16)


def read_label_colours(path: str | Path) -> np.ndarray:
    """A label map painted in colours: uint8 (H, W, 3). A palette is looked up, transparency dropped."""
    with _open_label(path, "colours") as opened:
        return np.asarray(decode(opened, path).convert("RGB"))


def check_label_size(
    label_path: str | Path, label_size: tuple[int, int], image_path: str | Path, image_size: tuple[int, int]
) -> None:
    """Raises BadFile, naming both files, if a label map does not fit its upright image; sizes: (height, width)."""
    if tuple(label_size) == tuple(image_size):
        return
    message = (
        f"{label_path}: is {label_size[1]} x {label_size[0]} (width x height), but its image {image_path} "
        f"is {image_size[1]} x {image_size[0]}; every pixel of the image needs its label"
    )
    raise BadFile(message + (_STORED_SIDEWAYS if tuple(label_size) == tuple(image_size)[::-1] else ""))


def label_histogram(labels: np.ndarray) -> np.ndarray:
    """How many pixels have each value, from 0 on, of `labels`, unsigned integers."""
    if labels.dtype == np.uint8 and labels.ndim == 2:
        return np.asarray(Image.fromarray(labels).histogram())  # a third of the time of bincount
    return np.bincount(labels.ravel())


def check_label_values(labels: np.ndarray, num_classes: int, ignore_label: int, path: str | Path) -> None:
    """Raises BadFile, naming the file and the values, if `labels` (unsigned integers) hold a value that is neither a
    class nor `ignore_label`."""
    if labels.dtype == np.uint8 and ignore_label == 255 and (labels + np.uint8(1)).max(initial=0) <= num_classes:
        return  # 255 has become 0; two fast passes, and a count only for the message
    counts = label_histogram(labels)
    counts[ignore_label : ignore_label + 1] = 0
    strange = num_classes + np.flatnonzero(counts[num_classes:])
    if len(strange):
        values = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise BadFile(
            f"{path}: holds the label {values}; with {num_classes} classes expected 0..{num_classes - 1}, "
            f"or {ignore_label} for pixels to ignore. Number the classes from 0 or correct the list of classes"
        )
