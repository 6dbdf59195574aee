"""The kernel of the semantic output against strips: on the GPU if there is one, else in Triton's interpreter."""

import pytest
import torch

from fasegr.modeling.meta_arch import semantic_inference, triton_semantic
from fasegr.modeling.meta_arch.semantic_inference import collect_labels, collect_scores, score_strips
from fasegr.modeling.meta_arch.triton_semantic import semantic_map, supports
from fasegr.modeling.ops import switches as fast_paths

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def case(padded, image, output, dtype=torch.float64, queries=19, classes=5):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(queries, classes + 1, generator=generator, dtype=torch.float64)
    mask_logits = 3 * torch.randn(queries, padded[0] // 4, padded[1] // 4, generator=generator, dtype=torch.float64)
    return class_logits.to(DEVICE, dtype), mask_logits.to(DEVICE, dtype), padded, image, output


@pytest.mark.parametrize(
    ("padded", "image", "output", "resize_masks"),
    [
        ((8, 12), (8, 12), (8, 12), False),
        ((8, 12), (7, 9), (7, 9), True),
        ((8, 12), (7, 9), (12, 5), False),
        ((8, 12), (7, 9), (12, 5), True),
        ((4, 8), (1, 1), (3, 2), False),
    ],
)
def test_equals_the_strips(padded, image, output, resize_masks):
    arguments = case(padded, image, output)
    scores = collect_scores(score_strips(*arguments, resize_masks=resize_masks), output)
    torch.testing.assert_close(semantic_map(*arguments, labels=False, resize_masks=resize_masks), scores)
    labels = semantic_map(*arguments, labels=True, resize_masks=resize_masks)
    assert labels.dtype == torch.uint8
    assert labels.equal(scores.argmax(0).to(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_are_float32_whatever_the_masks_are(dtype):
    arguments = case((8, 12), (8, 12), (8, 12), dtype)
    scores = semantic_map(*arguments, labels=False)
    assert scores.dtype == torch.float32
    expected = collect_scores(score_strips(*arguments), arguments[-1])
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=1e-5)


def test_many_classes_do_not_overflow_the_label_type():
    class_logits = torch.zeros(1, 302, device=DEVICE)
    class_logits[0, 300] = 5.0
    labels = semantic_map(class_logits, torch.zeros(1, 2, 2, device=DEVICE), (8, 8), (8, 8), (3, 3), labels=True)
    assert labels.dtype == torch.int16
    assert (labels == 300).all()


def test_nan_gives_a_label_that_exists():
    class_logits, mask_logits, *sizes = case((8, 8), (8, 8), (8, 8))
    labels = semantic_map(class_logits, torch.full_like(mask_logits, torch.nan), *sizes, labels=True)
    assert labels.max() < 5


def test_what_is_supported(monkeypatch):
    monkeypatch.setattr(triton_semantic, "has_triton", lambda index, dtype: True)
    sizes = ((32, 32), (32, 32), (32, 32))
    assert not supports(torch.empty(4, 20), torch.empty(4, 8, 8), *sizes)
    with torch._subclasses.FakeTensorMode(), torch.device("cuda"):
        logits, masks = torch.empty(4, 20), torch.empty(4, 8, 8)
        assert supports(logits, masks, *sizes)
        assert supports(logits, masks.half(), *sizes)
        assert not supports(logits, masks.double(), *sizes)
        assert not supports(logits, masks.clone().requires_grad_(), *sizes)
        assert not supports(torch.empty(4, 514), masks, *sizes)
        assert not supports(logits, masks, *sizes[:2], (32, 2**14 + 1))


@pytest.mark.parametrize(("form", "labels"), [("semantic_scores", False), ("semantic_labels", True)])
def test_chosen_where_it_is_supported_and_not_turned_off(monkeypatch, form, labels):
    chosen = []
    monkeypatch.setattr(triton_semantic, "supports", lambda *arguments: True)
    monkeypatch.setattr(triton_semantic, "semantic_map", lambda *arguments, **options: chosen.append(options))
    arguments = case((8, 8), (8, 8), (8, 8))
    getattr(semantic_inference, form)(*arguments)
    assert chosen == [{"labels": labels, "resize_masks": False}]
    collect = collect_labels if labels else collect_scores
    with fast_paths.off("triton_semantic_output"):
        plain = getattr(semantic_inference, form)(*arguments)
    assert plain.equal(collect(score_strips(*arguments), (8, 8)))
