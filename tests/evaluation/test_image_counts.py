import numpy as np
import pytest
import torch
from scipy import ndimage

from fasegr.evaluation.calibration import reliability_counts
from fasegr.evaluation.confusion_matrix import confusion_matrix
from fasegr.evaluation.image_counts import DISTANCES, CountsTable, Recorder, confidence_map, distance_band


def blobs(rng, shape, classes, sigma=4):
    return ndimage.gaussian_filter(rng.normal(size=(classes, *shape)), (0, sigma, sigma)).argmax(0).astype(np.uint8)


def slow_band(labels):
    height, width = labels.shape
    band = np.zeros(labels.shape, int)
    for y in range(height):
        for x in range(width):
            for i, r in enumerate(DISTANCES):
                square = labels[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
                if (square != labels[y, x]).any():
                    band[y, x] = i
                    break
            else:
                band[y, x] = len(DISTANCES)
    return band


@pytest.mark.parametrize("shape", [(45, 60), (1, 80), (80, 1), (5, 4)])
def test_distances_from_a_boundary_pixel_by_pixel(shape):
    labels = blobs(np.random.default_rng(0), shape, 3)
    np.testing.assert_array_equal(distance_band(labels), slow_band(labels))


def test_one_label_has_no_boundary_and_the_border_is_none():
    assert (distance_band(np.zeros((20, 90), np.uint8)) == len(DISTANCES)).all()
    halves = np.zeros((10, 100), np.uint8)
    halves[:, 50:] = 1
    expected = [5] * 18 + [4] * 16 + [3] * 8 + [2] * 4 + [1] * 2 + [0] * 2
    assert distance_band(halves)[3].tolist() == expected + expected[::-1]


def recorded(truths, predictions, classes, scores):
    recorder = Recorder()
    for i, (truth, prediction, score) in enumerate(zip(truths, predictions, scores, strict=True)):
        t, p = torch.from_numpy(truth), torch.from_numpy(prediction)
        recorder.add(f"{i}.jpg", t, p, confusion_matrix(t, p, classes + 1), None, score)
    return recorder.images()


def test_counts_of_images_in_order():
    rng = np.random.default_rng(0)
    classes, truths, predictions, scores = 4, [], [], []
    for _ in range(9):
        truth, prediction = blobs(rng, (50, 64), 5), blobs(rng, (50, 64), 4, 1)
        prediction = np.where(rng.random((50, 64)) < 0.7, np.minimum(truth, 3), prediction).astype(np.uint8)
        prediction[truth == classes] = classes  # ignored
        truths.append(truth)
        predictions.append(prediction)
        scores.append(torch.from_numpy(rng.random((classes, 50, 64), np.float32)))
    images = recorded(truths, predictions, classes, scores)
    assert [image.file_name for image in images] == [f"{i}.jpg" for i in range(9)]
    table = CountsTable.of(images, classes)
    for i, (truth, prediction, score) in enumerate(zip(truths, predictions, scores, strict=True)):
        kept = truth < classes
        expected = np.zeros((classes, classes))
        np.add.at(expected, (truth[kept], prediction[kept]), 1)
        np.testing.assert_array_equal(table.confusion[i].toarray().reshape(classes, classes), expected)
        whole = np.concatenate([expected.diagonal(), expected.sum(1), expected.sum(0)])
        np.testing.assert_array_equal(table.group("all")[0][i].toarray()[0], whole)
        for name in ("size", "distance"):
            np.testing.assert_array_equal(sum(part[i].toarray()[0] for part in table.group(name)), whole)
        near = kept & (slow_band(truth) == 0)
        part = table.group("distance")[0][i].toarray()[0].reshape(3, classes)
        assert part[1].sum() == near.sum() and part[0].sum() == (near & (truth == prediction)).sum()
        labels = np.minimum(prediction, classes - 1).astype(int)
        sure = np.take_along_axis(score.numpy(), labels[None], 0)[0] / score.numpy().sum(0)
        np.testing.assert_array_equal(table.reliability[i], reliability_counts(sure[kept], (truth == prediction)[kept]))
        assert np.abs(confidence_map(images[i]) - sure).max() < 1 / 63


def test_a_large_confidence_map_is_made_small_and_labels_have_none():
    truth = np.zeros((300, 1000), np.uint8)
    scores = torch.rand(2, 300, 1000)
    with_scores, without = recorded([truth] * 2, [truth] * 2, 2, [scores, None])
    assert max(confidence_map(with_scores).shape) <= 192
    assert without.reliability is None and confidence_map(without) is None
    assert CountsTable.of([with_scores, without], 2).reliability is None


def test_an_error_in_the_thread_is_raised():
    recorder = Recorder()
    truth = torch.zeros(4, 4, dtype=torch.uint8)
    recorder.add("a.jpg", truth, truth[:2], confusion_matrix(truth, truth, 3), None, None)
    with pytest.raises(ValueError, match="shape"):
        recorder.images()
