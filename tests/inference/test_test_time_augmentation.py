from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import fasegr
from fasegr import Predictor
from fasegr.inference.sliding_window import SlidingWindow
from fasegr.inference.test_time_augmentation import SemanticSegmentorWithTTA

CONFIG = Path(__file__).parents[2] / "configs/quickstart/faseg_scenes.yaml"
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, "MODEL.SEM_SEG_HEAD.MASK_DIM", 32, "MODEL.MASK_FORMER.HIDDEN_DIM", 64),
    *("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6, "MODEL.MASK_FORMER.DEC_LAYERS", 3),
    *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 90),
    *("TEST.AUG.MIN_SIZES", [33, 64], "TEST.AUG.MAX_SIZE", 80),
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return fasegr.build_model(fasegr.load_cfg(CONFIG, SMALL)).double().eval()


def photo(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def sample(height=48, width=70, **more):
    return {"image": torch.from_numpy(photo(height, width)).permute(2, 0, 1), **more}


def slow_reference(segment, sample, min_sizes, max_size, flip):
    """All results of `segment`, one sample at a time, stacked and averaged."""
    picture = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
    scores = []
    for length in min_sizes:
        factor = min(length / min(picture.size), max_size / max(picture.size))
        size = [int(side * factor + 0.5) for side in picture.size]
        pixels = torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BILINEAR))).permute(2, 0, 1)
        scores.append(segment(sample | {"image": pixels}))
        if flip:
            scores.append(segment(sample | {"image": pixels.flip(2)}).flip(2))
    return torch.stack(scores).mean(0)


def plain(model):
    return lambda sample: model([sample])[0]["sem_seg"]


@pytest.mark.parametrize("flip", [False, True])
@torch.no_grad()
def test_equals_a_slow_reference(model, flip):
    augmented = SemanticSegmentorWithTTA(model, min_sizes=[33, 48, 64], max_size=80, flip=flip)
    samples = [sample(height=31, width=90), sample(40, 40)]  # of the first, `height` and `width` are keys
    samples[0] = sample(48, 70) | {"height": 31, "width": 90}
    for result, one in zip(augmented(samples), samples, strict=True):
        one = {"height": one["image"].shape[1], "width": one["image"].shape[2]} | one
        torch.testing.assert_close(result["sem_seg"], slow_reference(plain(model), one, [33, 48, 64], 80, flip))


@torch.no_grad()
def test_labels_are_those_of_the_mean_scores(model):
    arguments = {"min_sizes": [33, 64], "max_size": 80, "flip": True}
    (scores,) = SemanticSegmentorWithTTA(model, **arguments)([sample()])
    (labels,) = SemanticSegmentorWithTTA(model, semantic_output="labels", **arguments)([sample()])
    assert set(labels) == {"sem_seg_labels"}
    assert torch.equal(labels["sem_seg_labels"].long(), scores["sem_seg"].argmax(0))


@torch.no_grad()
def test_one_size_and_no_flip_is_the_plain_result(model):
    (result,) = SemanticSegmentorWithTTA(model, min_sizes=[0], max_size=80, flip=False)([sample()])
    torch.testing.assert_close(result["sem_seg"], plain(model)(sample()))


@torch.no_grad()
def test_through_windows(model):
    window = SlidingWindow(model, size=(32, 48), overlap=0.5)
    (result,) = SemanticSegmentorWithTTA(window, min_sizes=[33, 64], max_size=80, flip=True)([sample()])
    one = sample() | {"height": 48, "width": 70}
    torch.testing.assert_close(result["sem_seg"], slow_reference(plain(window), one, [33, 64], 80, True))


def test_a_mirror_image_is_in_one_batch_with_the_image():
    class Counting(torch.nn.Module):
        batches = ()

        def score_tiles(self, samples):
            self.batches = (*self.batches, [tuple(s["image"].shape) for s in samples])
            return [iter([(slice(0, 8), F.interpolate(s["image"][None, :2].double(), (8, 8))[0])]) for s in samples]

    model = Counting()
    SemanticSegmentorWithTTA(model, min_sizes=[4, 8], max_size=99, flip=True)([sample(8, 8)])
    assert model.batches == ([(3, 4, 4)] * 2, [(3, 8, 8)] * 2)


def test_only_bytes_are_resized(model):
    with pytest.raises(ValueError, match=r"torch.float32; .* uint8"):
        SemanticSegmentorWithTTA(model, min_sizes=[8], max_size=8, flip=False)([{"image": torch.zeros(3, 8, 8)}])


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    model = fasegr.build_model(fasegr.load_cfg(CONFIG, SMALL))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    return ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("window", [False, True])
@torch.no_grad()
def test_the_predictor_uses_what_is_enabled(weights, original, window):
    opts = ["TEST.AUG.ENABLED", True, "TEST.AUG.FROM_ORIGINAL", original, "TEST.SLIDING_WINDOW.ENABLED", window]
    cfg = fasegr.load_cfg(CONFIG, [*SMALL, *weights, *opts, "TEST.SLIDING_WINDOW.SIZE", [48, 48]])
    predictor = Predictor(cfg)
    pixels = photo(100, 120)
    result = predictor(pixels)["sem_seg"]

    single = predictor.model.model
    assert isinstance(single, SlidingWindow) == window
    given = Image.fromarray(pixels)
    if not original:
        given = given.resize((77, 64), Image.Resampling.BILINEAR)
    one = {"image": torch.from_numpy(np.array(given)).permute(2, 0, 1), "height": 100, "width": 120}
    torch.testing.assert_close(result, slow_reference(plain(single), one, [33, 64], 80, True))


@torch.no_grad()
def test_the_predictor_uses_windows(weights):
    opts = ["TEST.SLIDING_WINDOW.ENABLED", True, "TEST.SLIDING_WINDOW.SIZE", [48, 48]]
    predictor, without = (Predictor(fasegr.load_cfg(CONFIG, [*SMALL, *weights, *more])) for more in (opts, []))
    image = Image.fromarray(photo(100, 120))
    resized = torch.from_numpy(np.array(image.resize((77, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    expected = SlidingWindow(without.model, size=(48, 48), overlap=0.5)(
        [{"image": resized, "height": 100, "width": 120}]
    )
    torch.testing.assert_close(predictor(image)["sem_seg"], expected[0]["sem_seg"])
