import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fasegr.inference.sliding_window import SlidingWindow, window_weights
from fasegr.modeling import ops


class Colours(nn.Module):
    """A segmentor whose three classes are functions of the colour of a pixel and its neighbours, and of its position
    in the image: windows disagree where they overlap. Gives `rows` rows at a time."""

    def __init__(self, rows=7, dtype=torch.float64):
        super().__init__()
        self.rows, self.dtype = rows, dtype
        self.largest = self.calls = 0
        torch.manual_seed(0)
        self.kernel = torch.randn(3, 3, 3, 3, dtype=torch.float64)

    def scores(self, sample):
        image = sample["image"].double() / 255
        self.largest, self.calls = max(self.largest, image[0].numel()), self.calls + 1
        place = torch.linspace(0, 1, image.shape[2], dtype=torch.float64)
        scores = F.conv2d(image[None], self.kernel, padding=1) + place
        size = (sample.get("height", image.shape[1]), sample.get("width", image.shape[2]))
        return F.interpolate(scores, size, mode="bilinear", align_corners=False)[0].to(self.dtype)

    def score_tiles(self, samples):
        def strips(scores):
            for top in range(0, scores.shape[1], self.rows):
                yield slice(top, min(top + self.rows, scores.shape[1])), scores[:, top : top + self.rows]

        return [strips(self.scores(sample)) for sample in samples]


def image(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def slow_reference(model, sample, size, overlap):
    """The scores of all windows, weighted and divided by the weights' sum, in whole maps; then the resize."""
    picture = sample["image"]
    height, width = picture.shape[1:]
    window = (min(size[0], height), min(size[1], width))
    total, weight = 0, 0
    for top in starts(height, window[0], overlap):
        for left in starts(width, window[1], overlap):
            place = (slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
            ramps = [
                torch.tensor([math.sin(math.pi * (i + 0.5) / n) ** 2 for i in range(n)], dtype=torch.float64)
                for n in window
            ]
            ramp = torch.zeros(3, height, width, dtype=torch.float64)
            ramp[place] = torch.outer(*ramps)
            scores = torch.zeros_like(ramp)
            scores[place] = model.scores({"image": picture[place]})
            total, weight = total + ramp * scores, weight + ramp
    output = (sample.get("height", height), sample.get("width", width))
    return F.interpolate((total / weight)[None], output, mode="bilinear", align_corners=False)[0]


def starts(length, size, overlap):
    """The fewest windows at equal steps of which each overlaps the next by the share asked for."""
    count = 1
    while (length - size) / max(1, count - 1) > (0 if count == 1 else max(1, math.floor(size * (1 - overlap)))):
        count += 1
    return [round(i * (length - size) / max(1, count - 1)) for i in range(count)]


@pytest.mark.parametrize(
    ("size", "window", "overlap", "output"),
    [
        ((40, 60), (16, 16), 0.5, (40, 60)),
        ((41, 59), (16, 20), 0.5, (83, 37)),
        ((41, 59), (16, 64), 0.25, (10, 200)),  # wider than the image
        ((33, 17), (16, 16), 0.0, (5, 3)),
        ((20, 9), (5, 8), 0.9, (21, 9)),
        ((17, 17), (16, 16), 0.5, (170, 17)),  # two windows that are nearly one
        ((12, 12), (1, 1), 0.5, (12, 12)),
    ],
)
@pytest.mark.parametrize("tile", [1, 10**9])
def test_equals_a_slow_reference(monkeypatch, size, window, overlap, output, tile):
    monkeypatch.setattr(ops, "items_per_tile", lambda elements, device: max(1, tile // elements))
    model = Colours()
    sample = {"image": image(*size), "height": output[0], "width": output[1]}
    expected = slow_reference(model, sample, window, overlap)
    model.largest = 0
    (result,) = SlidingWindow(model, size=window, overlap=overlap)([sample])
    torch.testing.assert_close(result["sem_seg"], expected)
    assert model.largest <= window[0] * window[1]


@pytest.mark.parametrize("window", [(40, 60), (64, 512)])
def test_one_window_is_the_plain_result(window):
    model, sample = Colours(), {"image": image(40, 60), "height": 31, "width": 77}
    (result,) = SlidingWindow(model, size=window, overlap=0.5)([sample])
    assert torch.equal(result["sem_seg"], model.scores(sample))


def test_labels_are_those_of_the_scores():
    samples = [{"image": image(40, 60, seed), "height": 50, "width": 44} for seed in range(2)]
    scores = SlidingWindow(Colours(), size=(16, 16), overlap=0.5)(samples)
    labels = SlidingWindow(Colours(), size=(16, 16), overlap=0.5, semantic_output="labels")(samples)
    for score, label in zip(scores, labels, strict=True):
        assert set(label) == {"sem_seg_labels"}
        assert torch.equal(label["sem_seg_labels"].long(), score["sem_seg"].argmax(0))


def test_what_all_windows_agree_on_is_kept_in_float32():
    class Flat(Colours):
        def scores(self, sample):
            return torch.full((3, *sample["image"].shape[1:]), 0.7)

    (result,) = SlidingWindow(Flat(), size=(64, 64), overlap=0.5)([{"image": image(200, 150)}])
    torch.testing.assert_close(result["sem_seg"], torch.full((3, 200, 150), 0.7), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("length", "size", "overlap"), [(100, 30, 0.5), (100, 99, 0.0), (7, 9, 0.5), (50, 10, 0.95)])
def test_weights_add_up_to_one_and_fade_to_the_edges(length, size, overlap):
    tops, weights = window_weights(length, size, overlap)
    total = torch.zeros(length, dtype=torch.float64)
    for top, weight in zip(tops, weights, strict=True):
        total[top : top + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones_like(total))
    assert tops[0] == 0 and tops[-1] == max(length - size, 0)
    if overlap >= 0.5 and len(tops) > 1:
        assert weights[0, -1] < 0.03 and weights[-1, 0] < 0.03  # where the next window is near its middle


@pytest.mark.parametrize("output", [(640, 24), (1280, 48)])
def test_rows_are_passed_on_as_soon_as_their_windows_are_done(output):
    model = Colours(rows=16)
    sample = {"image": image(640, 24), "height": output[0], "width": output[1]}
    (tiles,) = SlidingWindow(model, size=(16, 16), overlap=0.5).score_tiles([sample])
    next(tiles)
    assert model.calls == 2  # one row of windows
    assert max(scores.shape[1] for _, scores in tiles) < 3 * 16


def test_the_model_is_left_in_its_mode():
    model = Colours().eval()
    assert not SlidingWindow(model, size=(8, 8), overlap=0.5).training
    SlidingWindow(model.train(), size=(8, 8), overlap=0.5)
    assert model.training


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        ((16,), 0.5, r"size is \(16,\); expected height and width"),
        ((16, 0), 0.5, r"size is \(16, 0\)"),
        ((16, 16), 1.0, r"overlap is 1.0; .* below 1"),
    ],
)
def test_windows_that_cannot_work(size, overlap, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindow(Colours(), size=size, overlap=overlap)
