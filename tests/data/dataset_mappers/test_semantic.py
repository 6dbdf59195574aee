import numpy as np
import pytest
import torch
from PIL import Image

from fasegr.data.augmentation import ColorAugSSD, RandomCrop, ResizeCropFlip, ResizeShortestEdge
from fasegr.data.dataset_mappers import SemanticMapper, build_mapper
from fasegr.data.image_cache import ImageCache
from fasegr.data.image_io import BadFile


@pytest.fixture
def record(tmp_path):
    """An image whose red channel is 60 times its label of 0..3; one corner is to be ignored (255)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (5, 6)).repeat(12, 0).repeat(15, 1).astype(np.uint8)
    labels[:12, :15] = 255
    pixels = np.zeros((*labels.shape, 3), np.uint8)
    pixels[..., 0] = np.where(labels == 255, 255, labels * 60)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "a_labels.png")
    return {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "a_labels.png")}


def mapper(num_classes=4, ignore_label=255, cache=None, resize=None, **augmentation):
    augmentation = ResizeCropFlip(resize or ResizeShortestEdge(60, 1000), **augmentation)
    return SemanticMapper(augmentation, num_classes, ignore_label, cache)


def labels_of(sample):
    """The label map that the masks came from; -1 where there is none."""
    labels = torch.full(sample["masks"].shape[-2:], -1)
    for label, mask in zip(sample["labels"].tolist(), sample["masks"], strict=True):
        assert (labels[mask] == -1).all()
        labels[mask] = label
    return labels


def test_training_sample(record):
    sample = mapper()(record, np.random.default_rng(0))
    assert set(sample) == {"file_name", "height", "width", "image", "labels", "masks"}
    assert sample["file_name"] == record["file_name"]
    assert (sample["height"], sample["width"]) == (60, 90)
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, 60, 90)
    assert sample["labels"].dtype == torch.int64 and sample["labels"].tolist() == [0, 1, 2, 3]
    assert sample["masks"].dtype == torch.bool and sample["masks"].shape == (4, 60, 90)
    assert sample["image"].is_contiguous() and sample["masks"].is_contiguous()
    truth = np.asarray(Image.open(record["sem_seg_file_name"])).astype(int)
    np.testing.assert_array_equal(labels_of(sample), np.where(truth == 255, -1, truth))
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), np.asarray(Image.open(record["file_name"])))


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
def test_image_and_labels_stay_together(record, flip):
    """Through resize, crop and flip, the red channel of every pixel away from an edge still tells its label."""
    tested = mapper(
        resize=ResizeShortestEdge((40, 70, 110), 1000),
        crop=RandomCrop("absolute", (50, 50)),
        flip=flip,
        size_divisibility=32,
    )
    for seed in range(12):
        sample = tested(record, np.random.default_rng(seed))
        assert all(side % 32 == 0 for side in sample["image"].shape[1:])
        assert sample["masks"].shape[1:] == sample["image"].shape[1:]
        red, labels = sample["image"][0].float(), labels_of(sample)
        known = (labels >= 0) & (sample["image"][1] == 0)  # padding is grey, so not without green
        error = (red - labels * 60).abs()[known]
        assert error.median() <= 1
        assert (error <= 32).float().mean() > 0.9  # pixels on an edge between classes are mixed


def test_flips_mirror(record):
    plain = mapper()(record, np.random.default_rng(0))
    for flip, axis in (("horizontal", 2), ("vertical", 1)):
        flipping = mapper(flip=flip)
        samples = [flipping(record, np.random.default_rng(seed)) for seed in range(40)]
        turned = [not torch.equal(sample["image"], plain["image"]) for sample in samples]
        assert 10 < sum(turned) < 30
        for sample, is_turned in zip(samples, turned, strict=True):
            for key in ("image", "masks"):
                assert torch.equal(sample[key], plain[key].flip(axis) if is_turned else plain[key])


def test_padding_is_grey_and_has_no_label(record):
    sample = mapper(size_divisibility=64)(record, np.random.default_rng(0))
    assert sample["image"].shape == (3, 64, 128) and sample["masks"].shape == (4, 64, 128)
    assert (sample["image"][:, 60:] == 128).all() and (sample["image"][:, :, 90:] == 128).all()
    assert not sample["masks"][:, 60:].any() and not sample["masks"][:, :, 90:].any()


def test_randomness_is_the_generators(record):
    tested = mapper(
        resize=ResizeShortestEdge((40, 70, 110), 1000),
        crop=RandomCrop("absolute", (30, 30), 0.75),
        color=ColorAugSSD(),
        flip="horizontal",
    )
    first, again, other = (tested(record, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["masks"], again["masks"])
    assert not torch.equal(first["image"], other["image"])


def test_without_a_generator_numpys_state_decides(record):
    tested = mapper(crop=RandomCrop("absolute", (30, 30)))

    def sample():
        np.random.seed(3)
        return tested(record)["image"]

    assert torch.equal(sample(), sample())


def test_images_without_any_class_have_no_masks(record, tmp_path):
    Image.fromarray(np.full((60, 90), 255, np.uint8)).save(tmp_path / "a_labels.png")
    sample = mapper()(record, np.random.default_rng(0))
    assert sample["labels"].shape == (0,) and sample["labels"].dtype == torch.int64
    assert sample["masks"].shape == (0, 60, 90) and sample["masks"].dtype == torch.bool


def test_many_classes_and_a_large_ignore_label(record, tmp_path):
    labels = np.full((60, 90), 65535, np.uint16)
    labels[:30] = 700
    Image.fromarray(labels).save(tmp_path / "a_labels.png")
    sample = mapper(num_classes=701, ignore_label=65535, size_divisibility=64)(record, np.random.default_rng(0))
    assert sample["labels"].tolist() == [700]
    assert sample["masks"].sum() == 30 * 90


def test_labels_out_of_range_are_named(record):
    with pytest.raises(BadFile, match=r"a_labels\.png: holds the label 3; with 3 classes expected 0\.\.2, or 255"):
        mapper(num_classes=3)(record, np.random.default_rng(0))


def test_labels_of_another_size_are_named(record, tmp_path):
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "a_labels.png")
    with pytest.raises(BadFile, match=r"a_labels\.png: is 80 x 60"):
        mapper()(record, np.random.default_rng(0))


def test_records_without_labels_are_refused(record):
    with pytest.raises(BadFile, match="no 'sem_seg_file_name'"):
        mapper()({"file_name": record["file_name"]}, np.random.default_rng(0))


def test_test_sample(cfg, record):
    """Shorter side of 32 bounded by 48 for the longer one; labels are not even looked for."""
    sample = build_mapper(cfg, is_train=False)({"file_name": record["file_name"]})
    assert set(sample) == {"file_name", "height", "width", "image"}
    assert (sample["height"], sample["width"]) == (60, 90)
    assert sample["image"].shape == (3, 32, 48)
    slow = Image.open(record["file_name"]).resize((48, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), np.asarray(slow))
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert build_mapper(cfg, is_train=False)(record)["image"].shape == (3, 60, 90)


def test_a_cache_changes_no_sample_and_spares_the_files(record, tmp_path, monkeypatch):
    options = {
        "resize": ResizeShortestEdge((40, 70, 110), 1000),
        "crop": RandomCrop("absolute", (50, 50)),
        "flip": "horizontal",
    }
    cached = mapper(**options, cache=ImageCache(tmp_path / "cache"))
    cached(record, np.random.default_rng(0))
    plain = [mapper(**options)(record, np.random.default_rng(seed)) for seed in range(6)]

    def refuse(path):
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr("fasegr.data.image_cache.read_image", refuse)
    monkeypatch.setattr("fasegr.data.dataset_mappers.semantic.semantic_labels", refuse)
    for seed, expected in enumerate(plain):
        actual = cached(record, np.random.default_rng(seed))
        assert (actual["image"].int() - expected["image"].int()).abs().max() <= 1
        for key in ("labels", "masks"):
            torch.testing.assert_close(actual[key], expected[key], rtol=0, atol=0)


def test_a_cache_made_for_more_classes_is_still_checked(record, tmp_path):
    cache = ImageCache(tmp_path / "cache")
    mapper(cache=cache)(record, np.random.default_rng(0))
    with pytest.raises(BadFile, match=r"a_labels\.png.*label 3"):
        mapper(cache=cache, num_classes=3)(record, np.random.default_rng(0))
