import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling import ops
from fasegr.modeling.meta_arch.image_prediction import ImagePrediction
from fasegr.modeling.meta_arch.semantic_inference import score_tiles, semantic_result


def scores_of(*arguments, resize_masks=False):
    prediction = ImagePrediction(*arguments)
    return semantic_result(score_tiles(prediction, resize_masks=resize_masks), prediction.output_size, "scores")[
        "sem_seg"
    ]


def labels_of(*arguments, resize_masks=False):
    tiles = score_tiles(ImagePrediction(*arguments), resize_masks=resize_masks)
    return semantic_result(tiles, arguments[-1], "labels")["sem_seg_labels"]


def resize(x, size):
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def slow(class_logits, mask_logits, padded, image, output, resize_masks=False):
    """The released order: upsample the masks whole, product, crop, resize the scores; or resize, then product."""
    masks = resize(mask_logits, padded)[:, : image[0], : image[1]]
    if resize_masks:
        masks = resize(masks, output)
    scores = torch.einsum("qc,qhw->chw", class_logits.softmax(-1)[:, :-1], masks.sigmoid())
    return scores if resize_masks else resize(scores, output)


@pytest.mark.parametrize(
    ("padded", "image", "output"),
    [
        ((64, 96), (64, 96), (64, 96)),
        ((64, 96), (50, 81), (50, 81)),
        ((64, 96), (50, 81), (123, 77)),
        ((64, 96), (50, 81), (9, 300)),
        ((32, 32), (1, 1), (5, 3)),
        ((32, 64), (32, 64), (32, 31)),
    ],
)
@pytest.mark.parametrize("tile", [1, 3000, 10**9])
@pytest.mark.parametrize("resize_masks", [False, True])
def test_tiles_equal_the_whole(monkeypatch, padded, image, output, tile, resize_masks):
    torch.manual_seed(0)
    class_logits = torch.randn(7, 6, dtype=torch.float64)
    mask_logits = 3 * torch.randn(7, padded[0] // 4, padded[1] // 4, dtype=torch.float64)
    monkeypatch.setattr(ops, "items_per_tile", lambda elements, device: max(1, tile // elements))
    arguments = (class_logits, mask_logits, padded, image, output)
    expected = slow(*arguments, resize_masks)
    torch.testing.assert_close(scores_of(*arguments, resize_masks=resize_masks), expected)
    labels = labels_of(*arguments, resize_masks=resize_masks)
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(labels.long(), expected.argmax(0))


def test_many_classes_do_not_overflow_the_label_type():
    class_logits = torch.zeros(1, 301)
    class_logits[0, 299] = 5.0
    labels = labels_of(class_logits, torch.zeros(1, 8, 8), (32, 32), (32, 32), (32, 32))
    assert labels.dtype == torch.int16
    assert (labels == 299).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    class_logits, mask_logits = torch.randn(7, 6).to(dtype), torch.randn(7, 8, 8).to(dtype)
    scores = scores_of(class_logits, mask_logits, (32, 32), (32, 32), (32, 32))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, slow(class_logits.float(), mask_logits.float(), (32, 32), (32, 32), (32, 32)))
