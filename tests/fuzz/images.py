"""Images through every reader: spoilt PNG, JPEG, TIFF, WebP, BMP and GIF of many kinds, and files made to do harm."""

import io
import random
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fasegr.data.image_cache import load_image
from fasegr.data.image_io import image_size, label_size, read_image, read_label
from fasegr.data.panoptic_png import read_segment_ids
from fasegr.data.transform import height_and_width
from tests.fuzz.mutation import spoil, with_png_checksums

READERS = (image_size, read_image, load_image, label_size, read_label, read_segment_ids)
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif"}


def _encoded(image: Image.Image, form: str, more: Sequence[Image.Image] = (), **options) -> bytes:
    out = io.BytesIO()
    # copies, since saving as JPEG leaves its settings in an image
    image.copy().save(out, format=form, append_images=[other.copy() for other in more], save_all=bool(more), **options)
    return out.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _png(width: int, height: int, depth: int, colour: int, rest: bytes, interlace: int = 0) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, interlace])
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + rest + _chunk(b"IEND", b"")


def prepare(folder: Path) -> list[tuple[str, str, bytes]]:
    """(name, format, bytes) of good files."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).resize(
        (61, 43), Image.Resampling.BICUBIC
    )
    sideways = Image.Exif()
    sideways[0x0112] = 6
    modes = {mode: colour.convert(mode) for mode in ("L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "F", "I")}
    modes["I;16"] = Image.fromarray(rng.integers(0, 65536, (43, 61), dtype=np.uint16))
    modes["RGB"] = colour
    later = [colour.rotate(90), colour.rotate(180)]
    grey = _encoded(modes["L"], "PNG")
    late = _chunk(b"eXIf", sideways.tobytes().removeprefix(b"Exif\0\0"))
    late += _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\n" + b"00" * 8))
    files = [
        *(
            (f"png {mode}", "PNG", _encoded(modes[mode], "PNG"))
            for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16")
        ),
        ("png animated", "PNG", _encoded(colour, "PNG", later)),
        ("png exif", "PNG", _encoded(colour, "PNG", exif=sideways)),
        ("png exif after pixels", "PNG", grey[:-12] + late + grey[-12:]),
        ("png transparent", "PNG", _encoded(colour, "PNG", transparency=(1, 2, 3))),
        *((f"jpeg {mode}", "JPEG", _encoded(modes[mode], "JPEG")) for mode in ("RGB", "L", "CMYK", "YCbCr")),
        ("jpeg progressive", "JPEG", _encoded(colour, "JPEG", progressive=True, exif=sideways)),
        ("jpeg of several pictures", "JPEG", _encoded(colour, "MPO", later)),
        *((f"tiff {mode}", "TIFF", _encoded(modes[mode], "TIFF")) for mode in modes if mode != "LA"),
        *(
            (f"tiff {how}", "TIFF", _encoded(colour, "TIFF", compression=how, exif=sideways))
            for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ),
        ("tiff of several pages", "TIFF", _encoded(colour, "TIFF", later)),
        ("webp", "WEBP", _encoded(colour, "WEBP", exif=sideways)),
        ("webp lossless", "WEBP", _encoded(modes["RGBA"], "WEBP", lossless=True)),
        ("webp animated", "WEBP", _encoded(colour, "WEBP", later)),
        *((f"bmp {mode}", "BMP", _encoded(modes[mode], "BMP")) for mode in ("RGB", "L", "1", "P", "RGBA")),
        ("gif animated", "GIF", _encoded(colour, "GIF", later)),
    ]
    (folder / "executed").unlink(missing_ok=True)
    return files


def _harmful(rng: random.Random, folder: Path) -> tuple[str, bytes]:
    """Sizes that no memory holds, texts that unpack without end, forms that Pillow cannot write, a program."""
    width, height = (rng.choice((0, 1, 7, 61, 16384, 60000, 1 << 30, (1 << 31) - 1, (1 << 32) - 1)) for _ in range(2))
    depth, colour = rng.choice(
        ((8, 2), (8, 0), (16, 2), (16, 0), (8, 3), (1, 0), (4, 3), (8, 6), (16, 6), (3, 2), (8, 9))
    )
    pixels = zlib.compress(bytes(rng.choice((0, 100, 8000, 1 << 22))))
    palette = _chunk(b"PLTE", rng.randbytes(rng.choice((3, 48, 768, 769)))) if colour == 3 else b""
    kind = rng.randrange(5)
    if kind == 0:
        return "png of any size", _png(
            width, height, depth, colour, palette + _chunk(b"IDAT", pixels), rng.randrange(3)
        )
    if kind == 1:
        bomb = zlib.compress(bytes(1 << 27))
        body = rng.choice((b"a\0\0", b"XML:com.adobe.xmp\0\0", b"Raw profile type exif\0\0")) + bomb
        return "png with a text bomb", _png(
            8, 8, 8, 0, _chunk(rng.choice((b"zTXt", b"iCCP")), body) + _chunk(b"IDAT", pixels)
        )
    if kind == 2:
        script = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({folder}/executed) (w) file closefile\nshowpage\n"
        return "a program", script.encode()
    if kind == 3:
        size = rng.choice((1, 61, 40000, 70000))
        return (
            "ppm",
            f"P{rng.randrange(1, 8)} {size} {size} {rng.choice((1, 255, 65535, 0))}\n".encode() + rng.randbytes(200),
        )
    body = _chunk(b"IDAT", zlib.compress(bytes([0] * (61 * 3 + 1)) * 43))
    return "png in one of Adam7's passes", _png(61, 43, 8, 2, body, 1)


def make(shared: list, rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    if rng.random() < 0.1:
        what, data = _harmful(rng, folder.parent)
        suffix = rng.choice(list(SUFFIXES.values()))
    else:
        what, form, data = rng.choice(shared)
        suffix, data = SUFFIXES[form], spoil(data, rng)
        if form == "PNG" and rng.random() < 0.6:
            data = with_png_checksums(data)
    path = folder / f"picture{suffix}"
    path.write_bytes(data)
    return what, [str(path)]


def read(shared: list, folder: Path) -> str:
    """All readers; their sizes must agree, and each error must be one of a user's."""
    (path,) = folder.iterdir()
    results, errors = {}, []
    for reader in READERS:
        try:
            results[reader.__name__] = reader(path)
        except (ValueError, OSError) as error:
            if str(path) not in str(error):
                raise
            errors.append(error)
    if "image_size" in results:
        for name in ("read_image", "load_image"):
            if name in results and height_and_width(results[name]) != results["image_size"]:
                raise AssertionError(
                    f"{name} gives {height_and_width(results[name])}, image_size {results['image_size']}"
                )
    if not {"read_image", "load_image"} & results.keys():
        raise errors[0]
    return "an image"
