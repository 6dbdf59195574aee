import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.meta_arch.image_prediction import ImagePrediction
from fasegr.modeling.meta_arch.instance_inference import Instances, instances


def resize(x, size):
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def slow(class_logits, mask_logits, padded, image, output, limit, classes):
    """Every pair of query and class, sorted; the first `limit`; then those of the requested classes."""
    logits = resize(resize(mask_logits, padded)[:, : image[0], : image[1]], output)
    probability = class_logits.softmax(-1)[:, :-1]
    pairs = [(float(probability[q, c]), q, c) for q in range(len(logits)) for c in range(probability.shape[1])]
    found = []
    for score, q, c in sorted(pairs, reverse=True)[:limit]:
        if classes is None or c in classes:
            mask = logits[q] > 0
            mean = (logits[q].sigmoid() * mask).sum() / (mask.sum() + 1e-6)
            found.append((score * float(mean), c, mask))
    return found


@pytest.mark.parametrize(
    ("padded", "image", "output"),
    [((64, 96), (64, 96), (64, 96)), ((64, 96), (50, 81), (123, 77)), ((64, 96), (50, 81), (9, 100))],
)
@pytest.mark.parametrize("tile", [1, 3000, 10**9])
@pytest.mark.parametrize(("limit", "classes"), [(12, None), (30, {0, 3}), (1000, {1}), (5, set())])
def test_equals_the_slow_reference(monkeypatch, padded, image, output, tile, limit, classes):
    monkeypatch.setattr(ops, "items_per_tile", lambda elements, device: max(1, tile // elements))
    torch.manual_seed(0)
    class_logits = 2 * torch.randn(9, 6, dtype=torch.float64)
    mask_logits = 3 * torch.randn(9, padded[0] // 4, padded[1] // 4, dtype=torch.float64)
    mask_logits[4] = -1.0  # empty at any size
    arguments = (class_logits, mask_logits, padded, image, output)
    result = instances(ImagePrediction(*arguments), limit=limit, classes=classes)
    expected = slow(*arguments, limit, classes)
    assert len(result) == len(expected) and result.image_size == output
    for i, (score, category, mask) in enumerate(expected):
        assert float(result.scores[i]) == pytest.approx(score)
        assert int(result.pred_classes[i]) == category
        assert torch.equal(result.pred_masks[i], mask)


def test_boxes_are_those_of_the_masks():
    masks = torch.zeros(3, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 7:20] = True
    masks[1, 0, 3] = masks[1, 9, 1] = True
    found = Instances(torch.ones(3), torch.zeros(3, dtype=torch.int64), masks)
    assert found.pred_boxes.tolist() == [[7, 2, 20, 5], [1, 0, 4, 10], [0, 0, 0, 0]]
    assert found.to("cpu").pred_masks.equal(masks)
