import pytest
import torch

from fasegr.evaluation.labels import predicted_labels


def test_takes_the_best_class_of_scores():
    scores = torch.randn(7, 9, 3)
    assert torch.equal(predicted_labels({"sem_seg": scores}).long(), scores.argmax(0))


def test_labels_are_returned_as_they_are():
    labels = torch.randint(0, 4, (3, 5), dtype=torch.uint8)
    assert predicted_labels({"sem_seg_labels": labels}) is labels


def test_another_result_is_refused():
    with pytest.raises(KeyError, match="instances"):
        predicted_labels({"instances": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"\(2, 3\).*expected \(C, H, W\)"):
        predicted_labels({"sem_seg": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"float32 of shape \(1, 2, 3\)"):
        predicted_labels({"sem_seg_labels": torch.zeros(1, 2, 3)})
