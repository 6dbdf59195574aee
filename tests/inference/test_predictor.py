from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fasegr import Predictor, build_model, load_cfg
from fasegr.data.augmentation import ResizeShortestEdge
from fasegr.data.dataset_mappers import build_mapper

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "faseg_scenes.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 4, "MODEL.MASK_FORMER.DEC_LAYERS", 5),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96),
]


class Thresholds(nn.Module):
    """A segmentor of two classes, dark and bright, that remembers what it was given."""

    def __init__(self, labels=False):
        super().__init__()
        self.labels = labels

    def forward(self, samples):
        assert not self.training and torch.is_inference_mode_enabled()
        (self.sample,) = samples
        size = (self.sample["height"], self.sample["width"])
        bright = self.sample["image"].float().mean(0) - 128
        bright = nn.functional.interpolate(bright[None, None], size)[0, 0]
        return [{"sem_seg_labels": (bright > 0).byte()} if self.labels else {"sem_seg": torch.stack([-bright, bright])}]


@pytest.fixture
def predictor():
    return Predictor(model=Thresholds(), resize=ResizeShortestEdge(60, 90), class_names=["dark", "bright"])


@pytest.fixture
def photo():
    """80 x 160: the left half dark, the right half bright."""
    pixels = np.full((80, 160, 3), 20, np.uint8)
    pixels[:, 80:] = 220
    return pixels


def test_resizes_for_the_model_and_returns_a_result_of_the_image_size(predictor, photo):
    result = predictor(photo)
    image = predictor.model.sample["image"]
    assert image.shape == (3, 45, 90) and image.dtype == torch.uint8  # the longer side is bounded
    assert result["sem_seg"].shape == (2, 80, 160)
    assert result["sem_seg"].argmax(0)[:, [0, 159]].tolist() == [[0, 1]] * 80


def test_file_name_pil_image_and_array_are_the_same(predictor, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    expected = predictor(photo)["sem_seg"]
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(photo)):
        assert torch.equal(predictor(image)["sem_seg"], expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK"])
def test_other_pil_modes(predictor, photo, mode):
    result = predictor(Image.fromarray(photo).convert(mode))
    assert result["sem_seg"].argmax(0)[:, [0, 159]].tolist() == [[0, 1]] * 80


def test_exif_orientation(predictor, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(photo).save(tmp_path / "a.jpg", exif=exif)
    result = predictor(tmp_path / "a.jpg")
    assert result["sem_seg"].shape == (2, 160, 80)
    assert predictor.draw(tmp_path / "a.jpg", result).width == 80 * 5


def test_images_that_cannot_be_used(predictor, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a\.png"):
        predictor(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        predictor(tmp_path / "b.png")
    with pytest.raises(ValueError, match="mode F"):
        predictor(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match=r"float64 of shape \(4, 4, 3\); expected uint8"):
        predictor(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match=r"uint8 of shape \(4, 4\)"):
        predictor(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize("labels", [False, True])
def test_draws_with_its_colours(photo, labels):
    photo = photo.repeat(4, 0).repeat(4, 1)
    predictor = Predictor(
        model=Thresholds(labels),
        resize=ResizeShortestEdge(320, 640),
        class_names=["dark", "bright"],
        colors=[(255, 0, 0), (0, 0, 255)],
    )
    picture = np.asarray(predictor.draw(photo, predictor(photo), alpha=1.0))
    np.testing.assert_array_equal(picture[10, [10, 630]], [[255, 0, 0], [0, 0, 255]])
    assert picture.shape[1] == 640


# from a config


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = build_model(load_cfg(QUICKSTART, SMALL))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


def test_of_a_config_equals_its_test_pipeline(weights, tmp_path):
    """The result for a file is that of evaluation, which reads it with the mapper."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 150, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cfg = load_cfg(QUICKSTART, [*SMALL, "MODEL.WEIGHTS", weights])
    predictor = Predictor(cfg)
    result = predictor(tmp_path / "a.png")["sem_seg"]

    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(weights)["model"])
    sample = build_mapper(cfg, is_train=False)({"file_name": str(tmp_path / "a.png")})
    with torch.no_grad():
        torch.testing.assert_close(result, model([sample])[0]["sem_seg"])


def test_names_and_colours_are_those_of_the_dataset(weights):
    predictor = Predictor(load_cfg(QUICKSTART, [*SMALL, "MODEL.WEIGHTS", weights]))
    assert len(predictor.class_names) == 12 and "class_0" not in predictor.class_names
    assert predictor.colors.shape == (12, 3)


def test_of_a_config_without_a_dataset(weights):
    predictor = Predictor(load_cfg(QUICKSTART, [*SMALL, "MODEL.WEIGHTS", weights, "DATASETS.TEST", "()"]))
    assert predictor.class_names == [f"class_{i}" for i in range(12)]


def test_needs_weights():
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(load_cfg(QUICKSTART, SMALL))


def test_refuses_weights_of_a_part_of_the_model(weights, tmp_path):
    state = torch.load(weights)["model"]
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"backbone\.pth fits only a part of the model \(backbone\)"):
        Predictor(load_cfg(QUICKSTART, [*SMALL, "MODEL.WEIGHTS", str(tmp_path / "backbone.pth")]))
