import numpy as np
import pytest
import torch
from PIL import ImageChops

from fasegr.modeling.meta_arch.instance_inference import Instances
from fasegr.modeling.meta_arch.panoptic_inference import PanopticSegmentation
from fasegr.visualization.objects import class_list, draw_result, drawn_kind, object_table
from fasegr.visualization.overlays import overlay

NAMES = ["road", "car", "sky"]
COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]


def grey(height=400, width=400, level=100):
    return np.full((height, width, 3), level, np.uint8)


def box(left, right, top=0, bottom=400):
    mask = torch.zeros(400, 400, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def found(*objects, dtype=torch.float32):
    """objects: (score, class, mask)."""
    scores, labels, masks = zip(*objects, strict=True)
    return {"instances": Instances(torch.tensor(scores, dtype=dtype), torch.tensor(labels), torch.stack(masks))}


def drawn(result, **options):
    return np.asarray(draw_result(grey(), result, NAMES, COLORS, alpha=1.0, **options))


def test_instances_are_painted_each_in_a_shade_of_its_class():
    picture = drawn(found((0.9, 1, box(0, 100)), (0.8, 1, box(100, 200)), (0.7, 2, box(200, 300))))
    np.testing.assert_array_equal(picture[20, 50], COLORS[1])
    np.testing.assert_array_equal(picture[20, 150], [102, 222, 102])  # 40 % of the way to white
    np.testing.assert_array_equal(picture[20, 250], COLORS[2])
    np.testing.assert_array_equal(picture[20, 350], [100, 100, 100])  # nobody's


def test_a_smaller_instance_is_in_front():
    small, large = box(50, 250, 50, 250), box(0, 400)
    for order in (1, -1):
        picture = drawn(found(*((0.9, 0, large), (0.8, 2, small))[::order]))
        np.testing.assert_array_equal(picture[60, 60], COLORS[2])
        np.testing.assert_array_equal(picture[300, 300], COLORS[0])


def test_instances_of_low_score_are_left_out():
    result = found((0.9, 0, box(0, 100)), (0.3, 1, box(200, 300)))
    np.testing.assert_array_equal(drawn(result)[20, 250], [100, 100, 100])
    np.testing.assert_array_equal(drawn(result, min_score=0.2)[20, 250], COLORS[1])


def test_scores_are_written_but_for_the_certain():
    def picture(score):
        return draw_result(grey(), found((score, 0, box(0, 400))), NAMES, COLORS)

    plain = overlay(grey(), np.zeros((400, 400), int), NAMES, COLORS)  # the class alone
    assert ImageChops.difference(picture(1.0), plain).getbbox() is None
    assert ImageChops.difference(picture(0.9), plain).getbbox() is not None
    assert ImageChops.difference(picture(0.9), picture(0.8)).getbbox() is not None


def test_nothing_found():
    nothing = {"instances": Instances(torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 400, 400) > 0)}
    np.testing.assert_array_equal(drawn(nothing), grey())
    empty = {"panoptic_seg": PanopticSegmentation(torch.zeros(400, 400, dtype=torch.int32), [])}
    np.testing.assert_array_equal(drawn(empty), grey())


def test_panoptic_segments():
    ids = torch.zeros(400, 400, dtype=torch.int32)
    ids[:, :100], ids[:, 100:200], ids[:, 200:300] = 7, 3, 65536 * 200
    segments = [{"id": i, "category_id": c} for i, c in ((65536 * 200, 2), (3, 1), (7, 1))]
    picture = drawn({"panoptic_seg": PanopticSegmentation(ids, segments)})
    colours = [picture[20, x].tolist() for x in (50, 150, 250, 350)]
    assert colours == [[102, 222, 102], [0, 200, 0], [0, 0, 200], [100, 100, 100]]


def test_what_is_drawn_of_several_kinds():
    scores = {"sem_seg": torch.stack([box(0, 200), box(200, 300), box(300, 400)]).float()}
    instances = found((0.9, 1, box(0, 100)))
    panoptic = {"panoptic_seg": PanopticSegmentation(torch.zeros(400, 400, dtype=torch.int32), [])}
    assert [drawn_kind(scores), drawn_kind(scores | instances), drawn_kind(scores | instances | panoptic)] == [
        "sem_seg_labels",
        "instances",
        "panoptic_seg",
    ]
    labels = scores["sem_seg"].argmax(0)
    assert draw_result(grey(), scores, NAMES) == overlay(grey(), labels, NAMES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_precision(dtype):
    result = found((0.75, 1, box(0, 100)), dtype=dtype)
    expected = found((0.75, 1, box(0, 100)))
    np.testing.assert_array_equal(drawn(result), drawn(expected))


def test_table_has_a_legend_of_what_is_drawn():
    result, other = found((0.9, 1, box(0, 400)), (0.2, 2, box(0, 10))), found((0.9, 0, box(0, 400)))
    page = object_table([(grey(), result, other)], NAMES, COLORS, cell_width=200)
    pixels = np.asarray(page).reshape(-1, 3)
    for color, shown in zip(COLORS, (True, True, False), strict=True):
        assert (pixels == color).all(1).any() == shown
    foot = np.asarray(page)[-40:].reshape(-1, 3)
    assert all((foot == color).all(1).any() for color in COLORS[:2])
    assert page.width > 3 * 200


class Metadata(dict):
    pass


def test_classes_of_a_dataset():
    things = Metadata(thing_classes=["cat"], thing_colors=[(1, 2, 3)])
    assert class_list(things) == (["cat"], [(1, 2, 3)])
    assert class_list(Metadata(things, stuff_classes=["cat", "sky"])) == (["cat", "sky"], None)
    assert class_list(Metadata()) == (None, None)
