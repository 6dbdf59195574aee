import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fasegr.data.augmentation import LargeScaleJitter, RandomCrop, ResizeCropFlip, ResizeShortestEdge
from fasegr.data.dataset_mappers import InstanceMapper, PanopticMapper
from fasegr.data.image_cache import ImageCache
from fasegr.data.image_io import BadFile
from fasegr.data.panoptic_png import write_segment_ids
from fasegr.data.transform import Box, Transform

SIZE = (60, 90)
BOXES = {1: (5, 10, 20, 30), 2: (30, 50, 20, 25), 3: (35, 10, 15, 20)}  # y, x, height, width; none overlaps


class Fixed:
    """Augmentation that is always the same."""

    needs_sem_seg = False

    def __init__(self, transform):
        self.transform = transform

    def get_transform(self, rng, size, sem_seg):
        return self.transform


WHOLE = Fixed(Transform(SIZE, Box(0, 0, *SIZE), SIZE))


def rectangle(number):
    y, x, height, width = BOXES[number]
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def polygon(number):
    y, x, height, width = BOXES[number]
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.fixture
def picture(tmp_path):
    """Rectangle i has the colour (80 i, 80 i, 80 i), all else is black."""
    levels = sum(80 * number * rectangle(number).astype(np.uint8) for number in BOXES)
    Image.fromarray(levels.repeat(3).reshape(*SIZE, 3)).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "image_id": 17, "height": SIZE[0], "width": SIZE[1]}


@pytest.fixture
def instances(picture):
    """Two objects of class 4, one as a polygon and one as a code, and a crowd."""
    code = coco_mask.encode(np.asfortranarray(rectangle(2), dtype=np.uint8))
    annotations = [
        {"bbox": [10, 5, 30, 20], "bbox_mode": 1, "category_id": 4, "iscrowd": 0, "segmentation": polygon(1)},
        {"bbox": [50, 30, 25, 20], "bbox_mode": 1, "category_id": 4, "iscrowd": 0, "segmentation": code},
        {"bbox": [15, 20, 20, 15], "bbox_mode": 1, "category_id": 0, "iscrowd": 1, "segmentation": polygon(3)},
    ]
    return {**picture, "annotations": annotations}


@pytest.fixture
def panoptic(picture, tmp_path):
    """The same with numbers beyond 8 bits, on a background that has a segment too."""
    ids = np.full(SIZE, 70000)
    for number in BOXES:
        ids[rectangle(number)] = number * 300
    ids[:2] = 0
    write_segment_ids(tmp_path / "a_segments.png", ids)
    segments = [
        {"id": 300, "category_id": 4, "isthing": True, "iscrowd": 0},
        {"id": 600, "category_id": 4, "isthing": True, "iscrowd": 0},
        {"id": 900, "category_id": 0, "isthing": True, "iscrowd": 1},
        {"id": 70000, "category_id": 2, "isthing": False, "iscrowd": 0},
    ]
    return {**picture, "pan_seg_file_name": str(tmp_path / "a_segments.png"), "segments_info": segments}


def sample_of(record, augmentation=WHOLE, seed=0, **options):
    mapper = InstanceMapper if "annotations" in record else PanopticMapper
    return mapper(augmentation, **{"num_classes": 5, **options})(record, np.random.default_rng(seed))


def test_instances(instances):
    sample = sample_of(instances)
    assert set(sample) == {"file_name", "image_id", "height", "width", "image", "labels", "masks"}
    assert sample["image_id"] == 17 and (sample["height"], sample["width"]) == SIZE
    assert sample["image"].dtype == torch.uint8 and sample["image"].shape == (3, *SIZE)
    assert sample["labels"].dtype == torch.int64 and sample["labels"].tolist() == [4, 4]
    assert sample["masks"].dtype == torch.bool and sample["masks"].is_contiguous()
    np.testing.assert_array_equal(sample["masks"], [rectangle(1), rectangle(2)])


def test_panoptic_segments(panoptic):
    sample = sample_of(panoptic)
    assert sample["labels"].tolist() == [4, 4, 2]
    background = ~(rectangle(1) | rectangle(2) | rectangle(3))
    background[:2] = False
    np.testing.assert_array_equal(sample["masks"], [rectangle(1), rectangle(2), background])


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_image_and_masks_stay_together(kind, flip, request):
    """Through resize, crop, flip and padding, inside a mask is the colour of its rectangle."""
    record = request.getfixturevalue(kind)
    augmentations = (
        LargeScaleJitter(64, 0.5, 2.0, flip),
        ResizeCropFlip(ResizeShortestEdge((40, 70), 1000), RandomCrop("absolute", (50, 50)), None, flip, 32),
    )
    seen = 0
    for augmentation in augmentations:
        for seed in range(15):
            sample = sample_of(record, augmentation, seed)
            assert sample["masks"].shape[1:] == sample["image"].shape[1:]
            for label, mask in zip(sample["labels"], sample["masks"], strict=True):
                assert mask.any()
                if label == 4 and mask.sum() > 60:
                    seen += 1
                    levels = sample["image"][0][mask].float()
                    assert min((levels - 80 * number).abs().median() for number in (1, 2)) <= 2
    assert seen > 30


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_what_is_is_cropped_away_is_no_target(kind, request):
    record = request.getfixturevalue(kind)
    corner = Fixed(Transform(SIZE, Box(28, 48, 30, 40), (32, 40)))
    sample = sample_of(record, corner)
    assert sample["labels"].tolist() == ([4] if kind == "instances" else [4, 2])
    np.testing.assert_array_equal(sample["masks"][0][:30], rectangle(2)[28:58, 48:88])
    assert not sample["masks"][:, 30:].any()


def test_no_objects_is_fine(instances, panoptic):
    for annotations in ([], instances["annotations"][2:]):
        sample = sample_of({**instances, "annotations": annotations}, LargeScaleJitter(64, 0.5, 2.0))
        assert sample["labels"].shape == (0,) and sample["labels"].dtype == torch.int64
        assert sample["masks"].shape == (0, 64, 64) and sample["masks"].dtype == torch.bool
    assert sample_of({**panoptic, "segments_info": []})["masks"].shape == (0, *SIZE)


def test_overlapping_objects_keep_all_of_their_masks(instances):
    instances["annotations"][1]["segmentation"] = instances["annotations"][0]["segmentation"]
    np.testing.assert_array_equal(sample_of(instances)["masks"], [rectangle(1), rectangle(1)])


@pytest.mark.parametrize("kind", ["instances", "panoptic"])
def test_randomness_is_the_generators(kind, request):
    record = request.getfixturevalue(kind)
    jitter = LargeScaleJitter(64, 0.5, 2.0, "horizontal")
    first, again, other = (sample_of(record, jitter, seed) for seed in (1, 1, 2))
    for key in ("image", "labels", "masks"):
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["image"], other["image"])
    mapper = (InstanceMapper if kind == "instances" else PanopticMapper)(jitter, 5)

    def unseeded():
        np.random.seed(3)
        return mapper(record)["image"]

    assert torch.equal(unseeded(), unseeded())


def test_decoded_files_are_kept(instances, panoptic, tmp_path):
    cache = ImageCache(tmp_path / "cache")
    for record in (instances, panoptic):
        plain = sample_of(record)
        for _ in range(2):
            kept = sample_of(record, cache=cache)
            assert all(torch.equal(kept[key], plain[key]) for key in ("image", "labels", "masks"))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


def test_a_crop_by_classes_knows_those_of_segments(panoptic):
    """One class fills all of the picture but for the two objects of the other and their surroundings."""
    crop = ResizeCropFlip(ResizeShortestEdge(60, 1000), RandomCrop("absolute", (40, 40), 0.7))
    shares = [sample_of(panoptic, crop, seed)["masks"][-1].float().mean() for seed in range(20)]
    assert np.mean([share < 0.7 for share in shares]) > 0.8


def test_bad_records_are_named(instances, panoptic, tmp_path):
    with pytest.raises(BadFile, match=r"a\.png: holds the class 4; .*NUM_CLASSES 4 expected 0\.\.3"):
        sample_of(instances, num_classes=4)
    with pytest.raises(BadFile, match=r"a\.png: is 90 x 60 .* annotations are for 90 x 61"):
        sample_of({**instances, "height": 61})
    broken = [{**instances["annotations"][0], "segmentation": {"size": [1, 2], "counts": "x"}}]
    with pytest.raises(BadFile, match=r"a\.png: a run-length code has the size \[1, 2\]"):
        sample_of({**instances, "annotations": broken})
    del instances["annotations"]
    with pytest.raises(BadFile, match="no 'pan_seg_file_name'"):
        sample_of(instances)
    with pytest.raises(BadFile, match="no 'annotations'"):
        InstanceMapper(WHOLE, 5)(panoptic)
    write_segment_ids(tmp_path / "a_segments.png", np.zeros((60, 80)))
    with pytest.raises(BadFile, match=r"a_segments\.png: is 80 x 60"):
        sample_of(panoptic)
