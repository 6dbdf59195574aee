import pytest
import torch

from fasegr.evaluation.labels import predicted_labels


@pytest.mark.parametrize(
    ("classes", "dtype"), [(1, torch.uint8), (7, torch.uint8), (256, torch.uint8), (300, torch.int32)]
)
def test_takes_the_best_class(classes, dtype):
    scores = torch.randn(classes, 150, 3)  # taller than a strip
    labels = predicted_labels({"sem_seg": scores})
    assert labels.dtype == dtype
    assert torch.equal(labels.long(), scores.argmax(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_type(dtype):
    scores = torch.randn(5, 4, 6).to(dtype)
    expected = scores.to(torch.float64).numpy().argmax(0)  # numpy's takes the first of equals
    assert torch.equal(predicted_labels({"sem_seg": scores}).long(), torch.from_numpy(expected))


def test_scores_that_are_a_view():
    scores = torch.randn(9, 8, 5).permute(2, 0, 1).requires_grad_()
    assert torch.equal(predicted_labels({"sem_seg": scores}).long(), scores.argmax(0))


def test_ready_labels_are_returned_as_they_are():
    labels = torch.randint(0, 4, (3, 5), dtype=torch.uint8)
    assert predicted_labels({"sem_seg_labels": labels}) is labels


def test_another_result_is_refused():
    with pytest.raises(KeyError, match="instances"):
        predicted_labels({"instances": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"\(2, 3\).*expected \(C, H, W\)"):
        predicted_labels({"sem_seg": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"float32 of shape \(1, 2, 3\)"):
        predicted_labels({"sem_seg_labels": torch.zeros(1, 2, 3)})
