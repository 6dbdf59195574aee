import pytest
import torch

from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.softmax import softmax_of_few


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_equals_softmax(shift):
    scores = torch.randn(2, 5, 3, 12, dtype=torch.float64) * 30 + shift
    planes = torch.stack([scores, scores], 2).unbind(2)[0]  # a plane among others, as the model has it
    with torch.no_grad():
        close = torch.testing.assert_close
        close(softmax_of_few(planes), scores.softmax(-1))
        with fast_paths.off("softmax_of_few"):
            assert torch.equal(softmax_of_few(planes), planes.softmax(-1))


def test_what_is_passed_in_stays_as_it_was_and_has_a_gradient():
    scores = torch.randn(4, 6, dtype=torch.float64)
    before = scores.clone()
    softmax_of_few(scores)
    assert torch.equal(scores, before)
    assert torch.autograd.gradcheck(softmax_of_few, scores.requires_grad_())
