import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

from fasegr.data.image_io import (
    BadFile,
    Reading,
    check_label_size,
    check_label_values,
    configure_reading,
    image_size,
    label_size,
    read_image,
    read_label,
)

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


@pytest.fixture
def configure(monkeypatch):
    """configure(bit_depth=12): settings that end with the test."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    yield lambda **settings: configure_reading(Reading()._replace(**settings))
    configure_reading(Reading())


def test_colour_is_read_as_it_is(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.flags.writeable
    np.testing.assert_array_equal(image, COLOUR)
    assert image_size(tmp_path / "a.png") == (6, 9)


def test_grey_is_repeated(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([GREY] * 3, axis=-1))


def test_transparency_is_dropped(tmp_path):
    Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOUR)
    Image.fromarray(np.dstack([GREY, GREY[::-1]])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[..., 1], GREY)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257 * 100, 257 * 100 + 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (1, 6, 3)
    np.testing.assert_array_equal(image[0, :, 0], np.round(values[0] / 257))


def test_palette_bilevel_and_cmyk(tmp_path):
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png")[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    Image.fromarray(GREY > 127).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_image(tmp_path / "1.png")[..., 2], (GREY > 127) * 255)
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").shape == (6, 9, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, suffix):
    image = Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif)
    with Image.open(path) as opened:
        opened.load()  # which turns a TIFF
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2] == ((9, 6) if orientation > 4 else (6, 9))


@pytest.mark.parametrize("chunk", ["eXIf", "Raw profile type exif", "XML:com.adobe.xmp"])
def test_orientation_after_the_pixels(tmp_path, chunk):
    """As ImageMagick writes it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    bodies = {
        "eXIf": (b"eXIf", data),
        "Raw profile type exif": (
            b"zTXt",
            b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\n" + data.hex().encode()),
        ),
        "XML:com.adobe.xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'),
    }
    kind, body = bodies[chunk]
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    late = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(whole[:-12] + late + whole[-12:])
    assert image_size(tmp_path / "a.png") == (9, 6)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(COLOUR, -1))


def test_sizes_are_read_from_headers(tmp_path, monkeypatch):
    """Of large images, without their pixels."""

    def decoded(*args):
        raise AssertionError("pixels were read")

    image = Image.fromarray(COLOUR)
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        image.save(tmp_path / f"a.{suffix}")
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    for path in tmp_path.iterdir():
        assert image_size(path) == (6, 9), path


def test_programs_are_not_run(tmp_path):
    """Pillow would start Ghostscript for what is in this file, whatever its name."""
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    for read in (read_image, image_size, read_label):
        with pytest.raises(BadFile, match=r"a\.png: cannot be read as an image .* expected one of PNG, JPEG"):
            read(tmp_path / "a.png")


def test_a_size_that_no_memory_holds(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    for read in (read_image, image_size, read_label):
        with pytest.raises(BadFile, match=r"a\.png: has .*3600000000 pixels, more than INPUT\.MAX_PIXELS"):
            read(path)


def test_files_of_every_kind_become_rgb(tmp_path):
    image = Image.fromarray(COLOUR)
    image.save(tmp_path / "rgb.png")
    image.save(tmp_path / "jpeg.png", format="JPEG")  # a name that is wrong
    image.save(tmp_path / "transparent.png", transparency=(1, 2, 3))
    image.save(tmp_path / "profile.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack([COLOUR, GREY])).save(tmp_path / "alpha.png")
    image.quantize(8).save(tmp_path / "palette.png")
    note = PngImagePlugin.PngInfo()
    note.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    image.save(tmp_path / "xmp.png", pnginfo=note)
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as opened:
            sideways = path.name == "xmp.png"
            expected = np.asarray(opened.convert("RGB"))
        found = read_image(path)
        assert found.flags.writeable and found.flags.c_contiguous
        np.testing.assert_array_equal(found, np.rot90(expected, -1) if sideways else expected)


def test_broken_exif_does_not_matter(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00nonsense", quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (6, 9, 3)
    assert image_size(tmp_path / "a.jpg") == (6, 9)


def test_floating_point_images_are_refused(tmp_path):
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadFile, match=r"a\.tif: holds floating-point"):
        read_image(tmp_path / "a.tif")


def test_missing_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        read_image(tmp_path / "nowhere.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    for read in (read_image, image_size, read_label, label_size):
        with pytest.raises(BadFile, match=r"text\.jpg"):
            read(tmp_path / "text.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_files_are_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    for read in (read_image, *([image_size, read_label] if suffix == "png" else [])):
        with pytest.raises(BadFile, match=f"cut.{suffix}: the image data is damaged or cut short"):
            read(path)


def test_labels_of_8_and_16_bits_and_palettes(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "8.png")
    labels = read_label(tmp_path / "8.png")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, GREY)
    assert label_size(tmp_path / "8.png") == (6, 9)

    wide = GREY.astype(np.uint16) * 200
    Image.fromarray(wide).save(tmp_path / "16.png")
    labels = read_label(tmp_path / "16.png")
    assert labels.dtype == np.uint16
    np.testing.assert_array_equal(labels, wide)

    indices = np.arange(20, dtype=np.uint8).reshape(4, 5) % 3
    palette = Image.fromarray(indices, mode="P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(tmp_path / "p.png")  # written with two bits a pixel
    np.testing.assert_array_equal(read_label(tmp_path / "p.png"), indices)


def test_coloured_labels_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    for read in (read_label, label_size):
        with pytest.raises(BadFile, match=r"a\.png: has colours or transparency \(mode RGB\); a label map has one"):
            read(tmp_path / "a.png")


def test_greys_of_few_bits_are_refused(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / "a.png")
    with pytest.raises(BadFile, match="less than 8 bits"):
        read_label(tmp_path / "a.png")


def test_label_values():
    labels = np.array([[0, 1, 255]], dtype=np.uint8)
    check_label_values(labels, 2, 255, "a.png")
    with pytest.raises(BadFile, match=r"a\.png: holds the label 1; with 1 classes expected 0\.\.0, or 255"):
        check_label_values(labels, 1, 255, "a.png")
    with pytest.raises(BadFile, match="the label 255"):
        check_label_values(labels, 2, 254, "a.png")
    check_label_values(labels.astype(np.uint16) * 257, 258, 65535, "a.png")
    with pytest.raises(BadFile, match=r"the label 10, 11, 12, 13, 14, \.\.\."):
        check_label_values(np.arange(20, dtype=np.uint16), 10, 255, "a.png")


def test_label_size_must_be_the_images():
    check_label_size("a.png", (4, 6), "a.jpg", (4, 6))
    with pytest.raises(BadFile, match=r"a\.png: is 6 x 4 .* a\.jpg is 7 x 4") as error:
        check_label_size("a.png", (4, 6), "a.jpg", (4, 7))
    assert "EXIF" not in str(error.value)
    with pytest.raises(BadFile, match="EXIF"):
        check_label_size("a.png", (4, 6), "a.jpg", (6, 4))


# settings


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_as_they_are_stored(tmp_path, configure, orientation, suffix):
    path, plain = tmp_path / f"a.{suffix}", tmp_path / f"plain.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(path, exif=exif)
    Image.fromarray(COLOUR).save(plain)
    stored = read_image(plain)
    configure(use_exif=False)
    np.testing.assert_array_equal(read_image(path), stored)
    assert image_size(path) == (6, 9)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("bits", "given"), [(12, 0), (8, 0), (12, 12), (10, 10), (14, 14)])
def test_sixteen_bit_files_of_fewer_bits(tmp_path, configure, caplog, suffix, bits, given):
    """A camera's 12 bits keep their brightness; where they are found by looking, it is said once."""
    most = 2**bits - 1
    values = np.array([[0, most // 2, most // 3, most]], np.uint16)
    configure(bit_depth=given)
    for name in ("a", "b"):
        Image.fromarray(values).save(tmp_path / f"{name}.{suffix}")
        expected = np.round(values * 255.0 / most)
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.{suffix}")[..., 0], expected)
    said = [record for record in caplog.records if "INPUT.BIT_DEPTH" in record.message]
    assert len(said) == (0 if given else 1)


def test_dark_images_of_sixteen_bits(tmp_path, configure, caplog):
    values = np.array([[0, 257, 2570]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    configure(bit_depth=16)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], [[0, 1, 10]])
    configure(bit_depth=10)
    with pytest.raises(BadFile, match=r"a\.png: has the value 2570, more than INPUT\.BIT_DEPTH 10"):
        read_image(tmp_path / "a.png")


def test_a_tiff_says_its_largest_value(tmp_path, caplog):
    values = np.array([[0, 1000, 16383]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={281: 16383})
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[..., 0], np.round(values * 255.0 / 16383))
    assert not caplog.records


def _write_png16(path, values):
    """Channels of 16 bits, which Pillow does not write: 2 (grey, alpha), 3 or 4."""
    height, width, channels = values.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("most", [4095, 65535])
def test_colours_of_sixteen_bits(tmp_path, most, channels, configure):
    values = RNG.integers(0, most + 1, (5, 4, channels))
    values[0, 0] = most
    _write_png16(tmp_path / "a.png", values)
    colours = values[..., :3] if channels > 2 else values[..., :1].repeat(3, 2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), (colours * 255 + most // 2) // most)


def test_more_pixels_where_they_are_allowed(tmp_path, configure):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    configure(max_pixels=53)
    for read in (read_image, image_size, read_label):
        with pytest.raises(BadFile, match=r"a\.png: has 9 x 6 = 54 pixels, more than INPUT\.MAX_PIXELS 53; raise"):
            read(tmp_path / "a.png")
    configure(max_pixels=54)
    assert image_size(tmp_path / "a.png") == (6, 9)


def test_pillows_own_limit_is_raised(configure):
    configure(max_pixels=400_000_000)
    assert Image.MAX_IMAGE_PIXELS == 400_000_000


@pytest.mark.parametrize("step", ["load", "getexif"])
def test_a_data_worker_that_is_killed_while_an_image_is_read_is_no_damage(tmp_path, monkeypatch, step):
    """torch raises it in a handler of signals, wherever the program is."""

    def die(self, *args):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    Image.fromarray(COLOUR).save(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile.ImageFile if step == "load" else Image.Image, step, die)
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid 7\)") as error:
        read_image(tmp_path / "a.jpg")
    assert not isinstance(error.value, BadFile)
