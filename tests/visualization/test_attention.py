from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr import Predictor, build_model, load_cfg
from fasegr.analysis.attention_maps import LayerAttention
from fasegr.data.augmentation import ResizeShortestEdge
from fasegr.visualization.attention import (
    TARGET_COLOR,
    AttentionRecord,
    Panel,
    Target,
    attention_figure,
    attention_panels,
    attention_peaks,
    best_query,
    predict_with_attention,
)

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart" / "faseg_scenes.yaml"
COLORS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)


def layer(number, size, attention, pixels=None, positional=None):
    """Of two queries: attention is (2, h, w)."""
    weights = torch.tensor(np.array(attention), dtype=torch.float32).flatten(1)[None]
    positional = (
        weights if positional is None else torch.tensor(np.array(positional), dtype=torch.float32).flatten(1)[None]
    )
    nothing = torch.zeros(1, 2, 4)
    pixels = None if pixels is None else torch.tensor([pixels])
    return LayerAttention(number, size, weights, pixels, nothing, nothing, positional)


def record(**changes):
    """Of a white image: query 0 predicts the left half as class 2, query 1 the right half as class 0."""
    masks = torch.zeros(2, 60, 80)
    masks[0, :, :40], masks[1, :, 40:] = 0.9, 0.9
    left, right = [[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]
    dense = [layer(i, (2, 2), [left, right]) for i in range(3)]
    sparse = layer(3, (4, 4), [np.eye(4) / 4, np.eye(4) / 4], pixels=[0, 5, 10, 15])
    classes = torch.tensor([[0.1, 0.0, 0.8, 0.1], [0.6, 0.1, 0.1, 0.2]])
    fields = {
        "image": Image.new("RGB", (80, 60), (255, 255, 255)),
        "class_probs": classes,
        "mask_probs": masks,
        "layers": [*dense, sparse],
        "valid_ratio": (1.0, 1.0),
        "input_size": (64, 64),
    }
    return AttentionRecord(**{**fields, **changes})


def left_half():
    mask = np.zeros((60, 80), bool)
    mask[:, :40] = True
    return Target("sea", 2, mask)


def test_the_query_of_a_target():
    assert best_query(record(), left_half()) == 0
    assert best_query(record(), left_half()._replace(mask=~left_half().mask, label=0)) == 1


def test_of_equal_masks_the_one_of_the_class_is_taken():
    masks = torch.full((2, 60, 80), 0.9)
    assert best_query(record(mask_probs=masks), left_half()) == 0
    assert best_query(record(mask_probs=masks), left_half()._replace(label=0)) == 1


def test_semantic_labels_are_the_predicted_classes():
    labels = record().semantic_labels()
    assert (labels[:, :40] == 2).all() and (labels[:, 40:] == 0).all()


def test_values_lie_where_their_pixels_do():
    """A ramp over the network's input, of which the image fills the left 3/4 and the upper half."""
    columns = torch.arange(8).float() + 0.5  # the centres of the pixels, in units of them
    ramp = torch.from_numpy(record(valid_ratio=(0.5, 0.75)).on_image(columns.expand(4, 8)))
    expected = (torch.arange(80) + 0.5) / 80 * 6
    torch.testing.assert_close(ramp, expected.clamp(0.5, 7.5).expand(60, 80))


def test_peaks_are_centres_of_mass_around_the_largest_weight():
    weights = torch.zeros(3, 4, 8)
    weights[0, 1, 2] = 1
    weights[1, 2, 5], weights[1, 2, 6], weights[1, 0, 0] = 0.6, 0.3, 0.1  # far away: does not count
    weights[2, 0, 0] = 1  # in the corner
    expected = [[1.5 / 4, 2.5 / 8], [2.5 / 4, (0.6 * 5.5 + 0.3 * 6.5) / 0.9 / 8], [0.5 / 4, 0.5 / 8]]
    torch.testing.assert_close(attention_peaks(weights.flatten(1), (4, 8)), torch.tensor(expected))


def test_panels_show_the_last_three_layers_and_omega():
    row = attention_panels(record(), left_half(), 0, COLORS)
    assert [panel.title for panel in row[1:5]] == ["layer 2, 1/32", "layer 3, 1/32", "layer 4, 1/16", "omega, 1/16"]
    assert row[0].note == "query 0: sea 80 %, IoU 100"
    assert row[4].note == "4 of 16 pixels" and row[6].note == "2 of 2 name a class"
    assert all(panel.image.size == (80, 60) for panel in row)
    dark, lit = (np.asarray(row[4].image)[5, x] for x in (75, 5))
    assert lit.tolist() == [255] * 3 and dark.max() < 90


def test_attention_in_the_target_is_told():
    inside = attention_panels(record(), left_half(), 0, COLORS)[1].note
    outside = attention_panels(record(), left_half(), 1, COLORS)[1].note
    share = [int(note.split(" %")[0]) for note in (inside, outside)]
    assert share[0] > 70 and share[0] + share[1] == 100


def test_the_target_is_outlined_in_every_panel():
    for panel in attention_panels(record(), left_half(), 0, COLORS):
        column = np.asarray(panel.image).astype(int)[:, 38:42]
        assert (np.abs(column - TARGET_COLOR).sum(-1) < 40).any(1).mean() > 0.7, panel.title


def test_a_model_without_a_selection():
    row = attention_panels(record(layers=record().layers[:3]), left_half(), 0, COLORS)
    assert "no selection" in row[4].note and len(row) == 7


def test_a_target_that_fills_the_image_has_no_outline():
    whole = left_half()._replace(mask=np.ones((60, 80), bool))
    picture = np.asarray(attention_panels(record(), whole, 0, COLORS)[4].image)
    assert (picture[..., 0] == picture[..., 1]).all()  # grey: no red in it


def test_rows_have_names():
    panels = [Panel(Image.new("RGB", (100, 60)), "title", "note")] * 3
    one, two = (attention_figure([("", panels)] * n, [("sea", (0, 0, 255))]) for n in (1, 2))
    named = attention_figure([("DFPQ", panels)], [("sea", (0, 0, 255))])
    assert two.height > one.height and two.width == one.width < named.width


@pytest.fixture(scope="module")
def predictor():
    options = [
        *("MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "4", "MODEL.MASK_FORMER.DEC_LAYERS", "5"),
        *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1"),
    ]
    torch.manual_seed(0)
    model = build_model(load_cfg(QUICKSTART, options))
    return Predictor(model=model, resize=ResizeShortestEdge(64, 256), class_names=[f"class_{i}" for i in range(12)])


def test_the_record_of_a_model(predictor):
    """An image of 100 x 50 is resized to 128 x 64, without padding; one of 110 x 50 to 141 x 64, padded to 160 x 64."""
    for width, share in ((100, 1.0), (110, 141 / 160)):
        made = predict_with_attention(predictor, Image.new("RGB", (width, 50), (90, 120, 150)), 80)
        assert made.image.size == (80, round(80 * 50 / width)) and made.input_size == (64, 160 if share < 1 else 128)
        assert made.valid_ratio == pytest.approx((1.0, share))
        assert made.mask_probs.shape == (4, made.image.height, 80) and made.class_probs.shape == (4, 13)
        assert [made.stride(layer) for layer in made.layers] == [32, 16, 8, 4]
        torch.testing.assert_close(made.class_probs.sum(1), torch.ones(4))
    assert not predictor.model.sem_seg_head._forward_hooks
