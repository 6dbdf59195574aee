"""Reading images and label maps in all the formats that datasets have."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_png

__all__ = [
    "BadFile",
    "check_image_size",
    "check_label_size",
    "check_label_values",
    "decode",
    "image_size",
    "label_size",
    "open_file",
    "open_image",
    "read_image",
    "read_label",
]

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
_STORED_SIDEWAYS = ". The image may be stored on its side, with a note in its EXIF data: label it as viewers show it"


class BadFile(ValueError):
    """A file that cannot be used; the message names it and says what was expected."""


@contextmanager
def _named(path: str | Path, problem: str, remedy: str) -> Iterator[None]:
    """Makes what Pillow and libpng raise for a bad file a BadFile that names it."""
    try:
        yield
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        raise BadFile(f"{path}: {error}; cut it into smaller images") from error
    except _READERS_RAISE as error:
        raise BadFile(f"{path}: {problem} ({str(error) or type(error).__name__}); {remedy}") from error


def open_file(path: str | Path) -> Image.Image:
    """An image of which only the header is read."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    with _named(path, "cannot be read as an image", f"expected one of {', '.join(_FORMATS)}"):
        return Image.open(path, formats=_FORMATS)


def decode(image: Image.Image, path: str | Path) -> Image.Image:
    """`image`, of `open_file`, with its pixels."""
    with _named(path, _DAMAGED, "restore the file"):
        image.load()
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return Image.Image.getexif(image).get(_ORIENTATION, 1)  # that of a PNG would decode it
    except _READERS_RAISE:
        return 1  # damaged EXIF says nothing about the pixels; the image is assumed to be upright


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, read from the header. Raises as `open_image` for a file without one, and
    for a PNG that is cut short."""
    with open_file(path) as image:
        width, height = image.size
        if image.format == "TIFF":
            return height, width  # Pillow has looked at the orientation
        if image.format == "PNG" and _turned_after_pixels(path):
            decode(image, path)
        return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


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
    """The image, upright, as a PIL image in mode RGB.

    Grey is repeated, transparency is dropped, a palette is looked up, 16 bits are scaled to 8, and the EXIF
    orientation is applied. Raises FileNotFoundError, or BadFile if the file is damaged or its pixels have no known
    range.
    """
    with open_file(path) as opened:
        image = decode(opened, path)
        orientation = _orientation(opened)
        if image.mode in _SIXTEEN_BIT:
            values = np.asarray(image)
            if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
                raise BadFile(
                    f"{path}: its values are {values.min()}..{values.max()}; an image has 8 or 16 bits a channel"
                )
            image = Image.fromarray(((values.astype(np.int64) + 128) // 257).astype(np.uint8))
        elif image.mode == "F":
            raise BadFile(f"{path}: holds floating-point values; expected 8 or 16 bits a channel")
        if image.mode != "RGB":  # which `convert` would copy
            with _named(path, f"colours of mode {image.mode} cannot be converted to RGB", "save it as RGB"):
                image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def read_image(path: str | Path) -> np.ndarray:
    """`open_image` as an array: uint8 (H, W, 3), RGB."""
    pixels = read_png(path)
    return np.array(open_image(path)) if pixels is None else pixels


def read_png(path: str | Path) -> np.ndarray | None:
    """`read_image` of a plain PNG of 8 bits in RGB, upright and opaque; None for any other image.

    libpng undoes the filters of such files, most of the time that Cityscapes' images take, with vector instructions.
    """
    with open_file(path) as opened:
        rgb = opened.format == "PNG" and opened.tile and opened.tile[0][3] == "RGB"
        # libpng may complain about a profile on the console, for every image
        if not rgb or {"transparency", "icc_profile", "interlace"} & opened.info.keys():
            return None
    data = Path(path).read_bytes()
    if any(word in data for word in _PNG_ORIENTATION):
        return None
    with _named(path, _DAMAGED, "restore the file"):
        pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return pixels.permute(1, 2, 0).contiguous().numpy()


def _open_label(path: str | Path) -> Image.Image:
    image = open_file(path)
    raw_mode = image.tile[0][3] if image.tile else image.mode
    if isinstance(raw_mode, tuple):
        raw_mode = raw_mode[0]
    problem = None
    if image.mode in ("1", "L") and raw_mode in _SCALED_GREYS:
        problem = "is a grey image of less than 8 bits, whose values programs read differently"
    elif image.mode not in ("L", "P", *_SIXTEEN_BIT):
        problem = f"has colours or transparency (mode {image.mode})"
    if problem:
        image.close()
        raise BadFile(
            f"{path}: {problem}; a label map has one channel (8 or 16 bits, or a palette) "
            "whose values are class numbers, counted from 0"
        )
    return image


def label_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a label map, read from the header. Raises as `read_label` for a wrong kind of file, and for a
    PNG that is cut short."""
    with _open_label(path) as image:
        if image.format == "PNG":
            _turned_after_pixels(path)
        return image.height, image.width


def read_label(path: str | Path) -> np.ndarray:
    """A label map: (H, W) of class numbers, uint8, or uint16 from 16-bit files. Of a palette image, the indices.

    EXIF is ignored: a label map is drawn for the upright image.
    """
    with _open_label(path) as opened:
        labels = np.array(decode(opened, path))
    if labels.dtype == np.uint8:
        return labels
    if labels.min(initial=0) < 0 or labels.max(initial=0) > 65535:
        raise BadFile(f"{path}: its values are {labels.min()}..{labels.max()}; expected class numbers of 0..65535")
    return labels.astype(np.uint16)


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


def check_label_values(labels: np.ndarray, num_classes: int, ignore_label: int, path: str | Path) -> None:
    """Raises BadFile, naming the file and the values, if `labels` (unsigned integers) hold a value that is neither a
    class nor `ignore_label`."""
    if labels.dtype == np.uint8 and ignore_label == 255 and (labels + np.uint8(1)).max(initial=0) <= num_classes:
        return  # 255 has become 0; two fast passes, and a count only for the message
    if labels.dtype == np.uint8:
        counts = np.asarray(Image.fromarray(labels).histogram())  # a third of the time of bincount
    else:
        counts = np.bincount(labels.ravel())
    counts[ignore_label : ignore_label + 1] = 0
    strange = num_classes + np.flatnonzero(counts[num_classes:])
    if len(strange):
        values = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise BadFile(
            f"{path}: holds the label {values}; with {num_classes} classes expected 0..{num_classes - 1}, "
            f"or {ignore_label} for pixels to ignore. Number the classes from 0 or correct the list of classes"
        )
