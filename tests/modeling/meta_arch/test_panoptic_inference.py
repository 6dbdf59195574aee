import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.meta_arch.image_prediction import ImagePrediction
from fasegr.modeling.meta_arch.panoptic_inference import panoptic_segments

THINGS = {0, 1, 2}


def resize(x, size):
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def slow(class_logits, mask_logits, padded, image, output, score_threshold, overlap_threshold):
    """All masks at full size; one query after another takes its pixels."""
    masks = resize(resize(mask_logits, padded)[:, : image[0], : image[1]], output).sigmoid()
    probability, category = class_logits.softmax(-1).max(-1)
    no_object = class_logits.shape[1] - 1
    queries = [q for q in range(len(masks)) if category[q] != no_object and probability[q] > score_threshold]
    ids, segments, stuff = torch.zeros(output, dtype=torch.int32), [], {}
    if queries:
        winner = torch.stack([probability[q] * masks[q] for q in queries]).argmax(0)
    for place, q in enumerate(queries):
        won, held = winner == place, masks[q] >= 0.5
        if not (won & held).any() or won.sum() / held.sum() < overlap_threshold:
            continue
        kind = int(category[q])
        if kind in stuff:
            ids[won & held] = stuff[kind]
            continue
        segments.append({"id": len(segments) + 1, "category_id": kind, "isthing": kind in THINGS})
        ids[won & held] = len(segments)
        if kind not in THINGS:
            stuff[kind] = len(segments)
    return ids, segments


@pytest.mark.parametrize(
    ("padded", "image", "output"),
    [((64, 96), (64, 96), (64, 96)), ((64, 96), (50, 81), (123, 77)), ((64, 96), (50, 81), (9, 100))],
)
@pytest.mark.parametrize("tile", [1, 3000, 10**9])
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.4, 0.3), (0.4, 0.6), (0.99, 0.0)])
def test_equals_the_slow_reference(monkeypatch, padded, image, output, tile, thresholds):
    monkeypatch.setattr(ops, "items_per_tile", lambda elements, device: max(1, tile // elements))
    torch.manual_seed(2)
    class_logits = 2 * torch.randn(20, 6, dtype=torch.float64)
    blobs = 4 * torch.randn(20, 4, 6, dtype=torch.float64) - 3
    mask_logits = resize(blobs, (padded[0] // 4, padded[1] // 4))
    arguments = (class_logits, mask_logits, padded, image, output)
    expected, segments = slow(*arguments, *thresholds)
    result = panoptic_segments(
        ImagePrediction(*arguments), things=THINGS, score_threshold=thresholds[0], overlap_threshold=thresholds[1]
    )
    assert result.segment_ids.dtype == torch.int32
    assert torch.equal(result.segment_ids, expected)
    assert result.segments == segments
    if thresholds == (0.4, 0.3):
        kinds = [segment["category_id"] for segment in segments]
        assert len(kinds) > len(set(kinds))  # things of one class stay separate
        assert (expected == 0).any()


def test_stuff_of_one_class_is_one_segment():
    masks = torch.full((2, 8, 8), -9.0)
    masks[0, :, :3], masks[1, :, 5:] = 9.0, 9.0
    logits = torch.zeros(2, 6)
    logits[:, 4] = 20.0
    size = (32, 32)
    result = panoptic_segments(
        ImagePrediction(logits, masks, size, size, size), things=THINGS, score_threshold=0.8, overlap_threshold=0.8
    )
    assert result.segments == [{"id": 1, "category_id": 4, "isthing": False}]
    assert result.segment_ids[0].unique().tolist() == [0, 1] and result.segment_ids[0, [0, 31]].tolist() == [1, 1]


def test_nothing_found():
    size = (32, 32)
    ids, segments = panoptic_segments(
        ImagePrediction(torch.zeros(3, 6), torch.zeros(3, 8, 8), size, size, (20, 10)),
        things=THINGS, score_threshold=0.8, overlap_threshold=0.8,
    )  # fmt: skip
    assert segments == [] and ids.shape == (20, 10) and not ids.any()
