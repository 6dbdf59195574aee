import numpy as np
import pytest
import torch

from fasegr.data.dataset_mappers import build_mapper
from fasegr.data.torchvision_transforms import TorchvisionTransforms

SIZE = (24, 36)


@pytest.fixture
def sample():
    """An image whose red channel says which of three masks a pixel is in (100, 150 or 200, else 50)."""
    masks = np.zeros((3, *SIZE), bool)
    masks[0, :8], masks[1, 8:, :20], masks[2, 12:, 24:] = True, True, True
    image = np.zeros((3, *SIZE), np.uint8)
    image[0] = 50 + sum(mask * (50 + 50 * i) for i, mask in enumerate(masks)).astype(np.uint8)
    return image, masks


def apply(specs, sample, seed=0):
    return TorchvisionTransforms(specs, SIZE)(np.random.default_rng(seed), *sample)


GEOMETRIC = [
    {"RandomRotation": {"degrees": [20, 40], "interpolation": "nearest"}},
    {"RandomAffine": {"degrees": 0, "translate": [0.3, 0.3], "shear": 10}},
    {"RandomPerspective": {"p": 1.0, "interpolation": "nearest"}},
    {"ElasticTransform": {"interpolation": "nearest"}},
    {"RandomResizedCrop": {"size": [30, 20], "interpolation": "nearest"}},
    {"RandomZoomOut": {"p": 1.0}},
    {"RandomVerticalFlip": {"p": 1.0}},
]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("spec", GEOMETRIC, ids=lambda spec: next(iter(spec)))
def test_masks_follow_the_image(spec, sample, overlap):
    image, masks = sample
    if overlap:  # as objects may
        masks = np.concatenate([masks, masks[:1] | masks[1:2]])
    changed, moved = apply([spec], (image, masks))
    assert changed.dtype == np.uint8 and moved.dtype == bool and moved.shape == (len(masks), *changed.shape[1:])
    assert changed.shape[1:] != SIZE or not np.array_equal(moved, masks)
    for i in range(3):
        assert np.array_equal(moved[i], changed[0] == 100 + 50 * i)
    if overlap:
        assert np.array_equal(moved[3], moved[0] | moved[1])


def test_what_comes_from_outside_is_in_no_mask(sample):
    image, masks = sample
    masks[0] = ~masks[1:].any(0)  # every pixel is in a mask
    specs = [{"RandomAffine": {"degrees": 0, "translate": [0.4, 0.4]}}]
    changed, moved = apply(specs, (image, masks))
    outside = ~moved.any(0)
    assert outside.any() and (changed[:, outside] == 128).all()
    changed, again = apply([{"RandomAffine": {"degrees": 0, "translate": [0.4, 0.4], "fill": 7}}], (image, masks))
    assert (changed[:, outside] == 7).all() and np.array_equal(again, moved)


def test_colours_leave_masks_alone(sample):
    changed, masks = apply([{"ColorJitter": {"brightness": [1.5, 1.6]}}, {"GaussianBlur": {"kernel_size": 3}}], sample)
    assert changed[0].mean() > 1.3 * sample[0][0].mean()
    assert np.array_equal(masks, sample[1])


def test_nothing_to_mask(sample):
    image = sample[0]
    changed, masks = apply([{"RandomVerticalFlip": {"p": 1.0}}], (image, np.zeros((0, *SIZE), bool)))
    assert np.array_equal(changed, image[:, ::-1]) and masks.shape == (0, *SIZE)


def test_many_segments_that_do_not_fit_into_a_byte(sample):
    masks = np.zeros((300, *SIZE), bool)
    masks.reshape(300, -1)[np.arange(300), np.arange(300)] = True
    _, moved = apply([{"RandomVerticalFlip": {"p": 1.0}}], (sample[0], masks))
    assert np.array_equal(moved, masks[:, ::-1])


def test_randomness_is_that_of_the_sample(sample):
    specs = [
        {"RandomApply": {"p": 0.5, "transforms": [{"RandomRotation": {"degrees": 40}}]}},
        {"ColorJitter": {"brightness": 0.5}},
    ]
    state = torch.get_rng_state()
    first, again, other = apply(specs, sample, 3), apply(specs, sample, 3), apply(specs, sample, 4)
    torch.rand(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    torch.set_rng_state(state)
    before = torch.rand(3)
    torch.set_rng_state(state)
    apply(specs, sample, 3)
    assert torch.equal(torch.rand(3), before)  # the training's own numbers are not used up


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"RandomRotatoin": {"degrees": 3}}, r"INPUT\.AUGMENTATIONS\[1\] is 'RandomRotatoin'; .* no transform of this"),
        ({"Transform": {}}, "no transform of this name"),
        ({"functional": {}}, "no transform of this name"),
        ({"RandomRotation": {"angle": 3}}, r"\[1\] RandomRotation has no argument angle; it takes degrees, interpol"),
        ({"RandomRotation": {}}, r"RandomRotation: .*missing .*degrees"),
        ({"RandomRotation": {"degrees": -3}}, "RandomRotation: .*positive"),
        ({"RandomRotation": {"degrees": 3, "interpolation": "worst"}}, "RandomRotation: 'worst' is not a valid"),
        ({"RandomRotation": 3}, "expected its arguments as"),
        ({"RandomRotation": {}, "GaussianBlur": {}}, "expected one transform"),
        ("RandomRotation", "expected one transform"),
        ({"RandomApply": {"transforms": [{"Nothing": {}}]}}, r"\[1\] RandomApply\.transforms\[0\] is 'Nothing'"),
        ({"Grayscale": {}}, r"Grayscale cannot be applied .*torch\.uint8 \(1, 24, 36\)"),
        ({"AutoAugment": {}}, "AutoAugment cannot be applied .*Mask"),
        ({"FiveCrop": {"size": 8}}, "FiveCrop cannot be applied"),
        ({"RandomCrop": {"size": 99}}, "RandomCrop cannot be applied to an image of 24 x 36"),
        ({"ToDtype": {"dtype": "float32"}}, "ToDtype"),
        ({"MixUp": {"num_classes": 3}}, "MixUp"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_place(spec, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionTransforms([{"RandomVerticalFlip": None}, spec], SIZE)


def test_transforms_of_a_config(cfg, sample, tmp_path):
    """A class that is moved out of the picture is no target any more."""
    from PIL import Image

    labels = np.full(SIZE, 255, np.uint8)
    labels[:, :4], labels[:, 8:] = 0, 1
    record = {"file_name": str(tmp_path / "a.png"), "sem_seg_file_name": str(tmp_path / "b.png")}
    Image.new("RGB", SIZE[::-1]).save(record["file_name"])
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = (24,), "none", False
    cfg.INPUT.AUGMENTATIONS = [{"CenterCrop": {"size": 24}}]
    drawn = build_mapper(cfg, is_train=True)(record, np.random.default_rng(0))
    assert drawn["labels"].tolist() == [1]
    assert drawn["image"].shape == (3, 24, 24) and drawn["masks"].shape == (1, 24, 24)
    assert drawn["masks"].sum(-1).unique().tolist() == [22]  # columns 6 and 7 of the image are ignored
