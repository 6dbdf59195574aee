"""Costs against pair-by-pair arithmetic, assignments against trying all of them."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fasegr.modeling import ops
from fasegr.modeling.matcher import HungarianMatcher, Overlap, matching_cost
from fasegr.modeling.ops.point_sample import sample_points

WEIGHTS = (2.0, 5.0, 5.0)


def make_matcher(num_points=30, weights=WEIGHTS):
    return HungarianMatcher(
        class_weight=weights[0], mask_weight=weights[1], dice_weight=weights[2], num_points=num_points
    )


def make_batch(layers=3, queries=6, counts=(3, 2), classes=4, dtype=torch.float64, seed=0):
    """Predictions at a quarter of the resolution of the targets, as in the model."""
    torch.manual_seed(seed)
    logits = [torch.randn(len(counts), queries, classes + 1, dtype=dtype) for _ in range(layers)]
    masks = [3 * torch.randn(len(counts), queries, 4, 5, dtype=dtype) for _ in range(layers)]
    targets = [
        {"labels": torch.randint(0, classes, (count,)), "masks": torch.rand(count, 16, 20) > 0.5} for count in counts
    ]
    return logits, masks, targets, torch.rand(len(counts), 30, 2, dtype=dtype)


def slow_cost(class_logits, mask_logits, target, points):
    """(Q, K), a pair at a time, from the definitions."""
    logits = sample_points(mask_logits, points)
    masks = sample_points(target["masks"].to(points.dtype), points)
    cost = torch.empty(len(logits), len(masks), dtype=points.dtype)
    for q, k in itertools.product(range(len(logits)), range(len(masks))):
        probability = class_logits[q].softmax(0)[target["labels"][k]]
        entropy = F.binary_cross_entropy_with_logits(logits[q], masks[k])
        inside = logits[q].sigmoid()
        dice = 1 - (2 * (inside * masks[k]).sum() + 1) / (inside.sum() + masks[k].sum() + 1)
        cost[q, k] = -WEIGHTS[0] * probability + WEIGHTS[1] * entropy + WEIGHTS[2] * dice
    return cost


def least_total(cost):
    """Of all assignments of min(Q, K) pairs, tried one by one."""
    queries, targets = cost.shape
    if queries < targets:
        return least_total(cost.t())
    return min(
        (sum(cost[q, k] for k, q in enumerate(chosen)) for chosen in itertools.permutations(range(queries), targets)),
        default=0,
    )


def test_cost_is_that_of_each_pair():
    logits, masks, targets, points = make_batch()
    overlaps = [
        Overlap.of(sample_points(torch.cat([m[i] for m in masks]), points[i]), sample_points(t["masks"], points[i]))
        for i, t in enumerate(targets)
    ]
    image = torch.tensor([i for i, target in enumerate(targets) for _ in target["labels"]])
    labels = torch.cat([target["labels"] for target in targets])
    costs = matching_cost(torch.stack(logits), overlaps, labels, image, points.shape[1], WEIGHTS)
    for i, cost in enumerate(costs.split([len(target["labels"]) for target in targets])):
        for layer in range(len(logits)):
            expected = slow_cost(logits[layer][i], masks[layer][i], targets[i], points[i])
            torch.testing.assert_close(cost[:, layer].t(), expected)


@pytest.mark.parametrize("counts", [(3, 2), (1, 6), (0, 2), (0, 0), (8, 3)])
def test_assignment_is_the_cheapest(counts):
    logits, masks, targets, points = make_batch(counts=counts)
    matches = make_matcher()(logits, masks, targets, points)
    assert len(matches) == len(counts)
    for image, (match, count) in enumerate(zip(matches, counts, strict=True)):
        pairs = min(6, count)
        assert match.queries.shape == match.targets.shape == (3, pairs)
        assert match.queries.dtype == match.targets.dtype == torch.int64
        for layer in range(3):
            queries, chosen = match.queries[layer], match.targets[layer]
            assert queries.tolist() == sorted(set(queries.tolist())) and len(set(chosen.tolist())) == pairs
            cost = slow_cost(logits[layer][image], masks[layer][image], targets[image], points[image])
            torch.testing.assert_close(cost[queries, chosen].sum().item(), float(least_total(cost)))


def test_layers_and_images_are_independent():
    """All at once equals one prediction of one image at a time."""
    logits, masks, targets, points = make_batch()
    matcher = make_matcher()
    together = matcher(logits, masks, targets, points)
    for image in range(2):
        for layer in range(3):
            one = slice(image, image + 1)
            (single,) = matcher([logits[layer][one]], [masks[layer][one]], targets[one], points[one])
            assert torch.equal(single.queries[0], together[image].queries[layer])
            assert torch.equal(single.targets[0], together[image].targets[layer])


@pytest.mark.parametrize("tile", [1, 400, 10**9])
def test_size_of_tiles_does_not_matter(monkeypatch, tile):
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    expected = make_matcher()([x.double() for x in logits], [x.double() for x in masks], targets, points.double())
    monkeypatch.setattr(ops, "items_per_tile", lambda elements, device: max(1, tile // elements))
    for match, other in zip(make_matcher()(logits, masks, targets, points), expected, strict=True):
        assert torch.equal(match.queries, other.queries) and torch.equal(match.targets, other.targets)


def test_bool_and_float_targets_are_the_same():
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    as_float = [{**target, "masks": target["masks"].float()} for target in targets]
    for a, b in zip(
        make_matcher()(logits, masks, targets, points), make_matcher()(logits, masks, as_float, points), strict=True
    ):
        assert torch.equal(a.queries, b.queries) and torch.equal(a.targets, b.targets)


def test_autocast_does_not_lower_the_precision(monkeypatch):
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    seen = []

    def spy(*arguments):
        cost = matching_cost(*arguments)
        seen.append(cost)
        return cost

    monkeypatch.setattr("fasegr.modeling.matcher.matching_cost", spy)
    make_matcher()(logits, masks, targets, points)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        make_matcher()(logits, masks, targets, points)
    half = len(seen) // 2
    for plain, inside in zip(seen[:half], seen[half:], strict=True):
        assert torch.equal(plain, inside)


def test_half_precision_predictions():
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    logits, masks = [x.bfloat16() for x in logits], [x.bfloat16() for x in masks]
    expected = make_matcher()([x.float() for x in logits], [x.float() for x in masks], targets, points)
    for match, other in zip(make_matcher()(logits, masks, targets, points), expected, strict=True):
        assert torch.equal(match.queries, other.queries) and torch.equal(match.targets, other.targets)


def test_large_logits_have_finite_costs():
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    make_matcher()(logits, [1e4 * x for x in masks], targets, points)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("broken", ["pred_logits", "pred_masks"])
def test_not_finite_names_prediction_image_and_tensor(value, broken):
    logits, masks, targets, points = make_batch()
    {"pred_logits": logits, "pred_masks": masks}[broken][1][1, 2] = value
    with pytest.raises(FloatingPointError, match=rf"prediction 1 .*image 1 .*{broken}: [1-9]\d* of"):
        make_matcher()(logits, masks, targets, points)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": (0, 0, 0)}, r"\(0, 0, 0\)"),
        ({"weights": (1, -1, 1)}, r"\(1, -1, 1\)"),
        ({"num_points": 0}, "0 points"),
    ],
)
def test_wrong_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_matcher(**arguments)
