import pytest
import torch

from fasegr.modeling.ops import switches
from fasegr.modeling.ops.class_argmax import class_argmax


@pytest.mark.parametrize(
    ("classes", "dtype"), [(1, torch.uint8), (7, torch.uint8), (256, torch.uint8), (300, torch.int16)]
)
def test_takes_the_best_class(classes, dtype):
    scores = torch.randn(classes, 150, 3)
    labels = class_argmax(scores)
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), scores.argmax(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_type_and_the_first_of_ties(dtype):
    scores = torch.randn(5, 40, 60).to(dtype)
    expected = scores.to(torch.float64).numpy().argmax(0)  # numpy takes the first of ties
    assert torch.equal(class_argmax(scores).long(), torch.from_numpy(expected))


def test_scores_that_are_a_view_with_gradient():
    scores = torch.randn(9, 8, 5).permute(2, 0, 1).requires_grad_()
    assert torch.equal(class_argmax(scores).long(), scores.argmax(0))


def test_the_switch_changes_no_result():
    scores = torch.randn(9, 130, 5)
    with switches.off("class_argmax"):
        plain = class_argmax(scores)
    assert torch.equal(class_argmax(scores), plain)
