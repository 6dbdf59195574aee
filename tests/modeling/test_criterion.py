"""The set loss against a plain one written here, against numbers of the released code, and over ranks."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fasegr.modeling import ops
from fasegr.modeling.criterion import SetCriterion, point_losses
from fasegr.modeling.matcher import HungarianMatcher
from fasegr.modeling.ops.point_sample import sample_points
from fasegr.modeling.point_sampling import random_points

GOLDEN = Path(os.environ.get("FASEGR_GOLDEN", Path(__file__).parents[2].parent / "shared" / "golden")) / "criterion.npz"
CLASSES = 4


def pinned(pattern, first_image=0):
    """Draws that always return the first points of a pattern, (P, 2) or, one per image, (B, P, 2)."""

    def draw(images, points, device, dtype):
        chosen = pattern[first_image : first_image + images, :points] if pattern.dim() == 3 else pattern[:points]
        return chosen.expand(images, points, 2).to(device, dtype)

    return draw


def make_criterion(draw=random_points, num_points=16, matcher_points=20, **changes):
    settings = {"oversample_ratio": 3.0, "importance_sample_ratio": 0.75, "no_object_weight": 0.1, **changes}
    matcher = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=matcher_points)
    return SetCriterion(num_classes=CLASSES, matcher=matcher, num_points=num_points, draw=draw, **settings)


def make_batch(layers=3, queries=6, counts=(3, 2), dtype=torch.float64, seed=0, size=(4, 5)):
    """Predictions as leaves, (L, B, ...), and targets at four times their resolution."""
    torch.manual_seed(seed)
    images = len(counts)
    logits = torch.randn(layers, images, queries, CLASSES + 1, dtype=dtype).requires_grad_()
    masks = (3 * torch.randn(layers, images, queries, *size, dtype=dtype)).requires_grad_()
    height, width = 4 * size[0], 4 * size[1]
    targets = [
        {"labels": torch.randint(0, CLASSES, (count,)), "masks": torch.rand(count, height, width) > 0.5}
        for count in counts
    ]
    return logits, masks, targets, torch.rand(images, 200, 2, dtype=dtype)


def as_outputs(logits, masks):
    *earlier, last = ({"pred_logits": x, "pred_masks": m} for x, m in zip(logits, masks, strict=True))
    return {**last, "aux_outputs": earlier} if earlier else last


def plain_losses(logits, masks, targets, points, criterion, class_weights=(1.0,) * CLASSES):
    """SetCriterion, one mask at a time."""
    matcher, losses = criterion.matcher, {}
    with torch.no_grad():
        matches = matcher(logits, masks, targets, points[:, : matcher.num_points])
    count = max(1, sum(len(target["labels"]) for target in targets))
    weight = torch.tensor([*class_weights, 0.1], dtype=logits.dtype)
    for layer in range(len(logits)):
        suffix = "" if layer == len(logits) - 1 else f"_{layer}"
        classes = torch.full(logits.shape[1:3], CLASSES)
        entropies, dices = [masks.sum() * 0], [masks.sum() * 0]
        for image, match in enumerate(matches):
            candidates, random = points[image, : criterion.num_candidates], points[image, : criterion.num_random]
            for query, target in zip(match.queries[layer].tolist(), match.targets[layer].tolist(), strict=True):
                classes[image, query] = targets[image]["labels"][target]
                mask, truth = masks[layer, image, query][None], targets[image]["masks"][target][None].to(masks.dtype)
                nearest = sample_points(mask, candidates)[0].abs().argsort()[: criterion.num_uncertain]
                coords = torch.cat((candidates[nearest], random))
                x, t = sample_points(mask, coords)[0], sample_points(truth, coords)[0]
                entropies.append(F.binary_cross_entropy_with_logits(x, t))
                s = x.sigmoid()
                dices.append(1 - (2 * (s * t).sum() + 1) / (s.sum() + t.sum() + 1))
        losses["loss_ce" + suffix] = F.cross_entropy(logits[layer].flatten(0, 1), classes.flatten(), weight)
        losses["loss_mask" + suffix] = torch.stack(entropies).sum() / count
        losses["loss_dice" + suffix] = torch.stack(dices).sum() / count
    return losses


def total(losses):
    """Each loss has a different weight, so that none can be mistaken for another."""
    return sum((i + 1) * losses[name] for i, name in enumerate(sorted(losses)))


@pytest.mark.parametrize("counts", [(3, 2), (1, 6), (0, 2), (0, 0), (8, 3), (4,)])
@pytest.mark.parametrize("layers", [1, 3])
def test_losses_and_gradients_are_those_of_the_plain_form(counts, layers):
    logits, masks, targets, points = make_batch(layers, counts=counts)
    criterion = make_criterion(pinned(points))
    losses = criterion(as_outputs(logits, masks), targets)
    expected = plain_losses(logits, masks, targets, points, criterion)
    assert set(losses) == set(expected)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(
        torch.autograd.grad(total(losses), (logits, masks)), torch.autograd.grad(total(expected), (logits, masks))
    )


def test_weights_of_classes():
    logits, masks, targets, points = make_batch()
    criterion = make_criterion(pinned(points), class_weights=[3.0, 0.5, 1.0, 20.0])
    expected = plain_losses(logits, masks, targets, points, criterion, (3.0, 0.5, 1.0, 20.0))
    torch.testing.assert_close(criterion(as_outputs(logits, masks), targets), expected)


@pytest.mark.parametrize("weights", [[1.0] * 3, [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, float("nan"), 1.0]])
def test_impossible_weights_of_classes(weights):
    with pytest.raises(ValueError, match=r"class weights are .* expected none, or 4 numbers > 0"):
        make_criterion(class_weights=weights)


@pytest.mark.parametrize("changes", [{"importance_sample_ratio": 0.0}, {"importance_sample_ratio": 1.0}])
@pytest.mark.parametrize("oversample_ratio", [1.0, 2.5])
def test_shares_of_points(changes, oversample_ratio):
    logits, masks, targets, points = make_batch()
    criterion = make_criterion(pinned(points), oversample_ratio=oversample_ratio, **changes)
    losses = criterion(as_outputs(logits, masks), targets)
    torch.testing.assert_close(losses, plain_losses(logits, masks, targets, points, criterion))


@pytest.mark.parametrize("tile", [1, 500])
def test_float32_and_its_tiles(monkeypatch, tile):
    """The faster form, which float64 does not use; the chosen points may differ where uncertainties are near ties."""
    monkeypatch.setattr(ops, "items_per_tile", lambda elements, device: max(1, tile // elements))
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    criterion = make_criterion(pinned(points))
    losses = criterion(as_outputs(logits, masks), targets)
    gradients = torch.autograd.grad(total(losses), (logits, masks))
    expected = plain_losses(logits.double(), masks.double(), targets, points.double(), criterion)
    expected_gradients = torch.autograd.grad(total(expected), (logits, masks))
    for name, value in losses.items():
        assert value.dtype == torch.float32 and value.dim() == 0
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def test_gradcheck():
    logits, masks, targets, points = make_batch(layers=2, queries=3, counts=(2, 1), size=(2, 3))
    criterion = make_criterion(pinned(points), num_points=4)
    assert torch.autograd.gradcheck(
        lambda x, m: tuple(criterion(as_outputs(x, m), targets).values()), (logits, masks), atol=1e-6
    )


def test_point_losses_of_certain_masks():
    targets = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    right, wrong = point_losses(100 * (2 * targets - 1), targets), point_losses(-100 * (2 * targets - 1), targets)
    torch.testing.assert_close(right, (torch.zeros(1), torch.zeros(1)))
    torch.testing.assert_close(wrong, (torch.tensor([100.0]), torch.tensor([0.8])))  # 1 - 1 / (2 + 2 + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_targets_train_only_the_classes(dtype):
    logits, masks, targets, _ = make_batch(counts=(0, 0), dtype=dtype)
    losses = make_criterion()(as_outputs(logits, masks), targets)
    for name, value in losses.items():
        assert value.dtype == dtype
        assert (value > 0) if name.startswith("loss_ce") else (value == 0)
    by_logits, by_masks = torch.autograd.grad(total(losses), (logits, masks))
    assert by_logits.abs().sum() > 0
    assert torch.equal(by_masks, torch.zeros_like(masks))  # zeros, not None: every rank reduces every gradient


def test_only_matched_masks_get_gradients():
    logits, masks, targets, points = make_batch()
    criterion = make_criterion(pinned(points))
    total(criterion(as_outputs(logits, masks), targets)).backward()
    matches = criterion.matcher(logits.detach(), masks.detach(), targets, points[:, :20])
    matched = torch.zeros(masks.shape[:3], dtype=torch.bool)
    for image, match in enumerate(matches):
        matched[:, image] = matched[:, image].scatter(1, match.queries, True)
    assert torch.equal(masks.grad.abs().sum((3, 4)) > 0, matched)


def test_float_masks_are_the_same_as_bool():
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    criterion = make_criterion(pinned(points))
    as_float = [{**target, "masks": target["masks"].float()} for target in targets]
    torch.testing.assert_close(
        criterion(as_outputs(logits, masks), targets), criterion(as_outputs(logits, masks), as_float)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_promoted(dtype):
    logits, masks, targets, points = make_batch(dtype=torch.float32)
    half = [x.detach().to(dtype).requires_grad_() for x in (logits, masks)]
    criterion = make_criterion(pinned(points))
    with torch.autocast("cpu", dtype=dtype):
        losses = criterion(as_outputs(*half), targets)
    expected = criterion(as_outputs(*(x.float() for x in half)), targets)
    torch.testing.assert_close(losses, expected)
    assert {value.dtype for value in losses.values()} == {torch.float32}
    gradients = torch.autograd.grad(total(losses), half)
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in gradients)


def test_same_seed_same_losses():
    logits, masks, targets, _ = make_batch(dtype=torch.float32)
    criterion, runs = make_criterion(), []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        losses = criterion(as_outputs(logits, masks), targets)
        runs.append((losses, torch.autograd.grad(total(losses), (logits, masks))))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert runs[0][0]["loss_mask"] != runs[2][0]["loss_mask"]


def test_nan_is_an_error_that_says_where():
    logits, masks, targets, points = make_batch()
    with torch.no_grad():
        masks[1, 0, 2, 3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"prediction 1 .*image 0 .*pred_masks: 5 of 120"):
        make_criterion(pinned(points))(as_outputs(logits, masks), targets)


def test_host_never_asks_for_a_value():
    """On an accelerator each of these would wait for it; the matching needs only one copy."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            if func is torch.ops.aten.index.Tensor:
                assert all(index is None or index.dtype != torch.bool for index in args[1])
            return func(*args, **(kwargs or {}))

    aten, seen = torch.ops.aten, []
    for dtype in (torch.float32, torch.float64):
        logits, masks, targets, _ = make_batch(dtype=dtype)
        with Watch():
            total(make_criterion()(as_outputs(logits, masks), targets)).backward()
    waiting = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.unique_dim}
    assert seen and not waiting.intersection(seen)


def test_empty_weight_is_not_in_the_state_dict():
    criterion = make_criterion()
    assert not criterion.state_dict()
    assert dict(criterion.named_buffers()).keys() == {"empty_weight"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_points": 0}, "0 points"),
        ({"oversample_ratio": 0.5}, "oversample ratio is 0.5"),
        ({"importance_sample_ratio": 1.5}, "importance sample ratio is 1.5"),
        ({"no_object_weight": 0.0}, "no-object weight is 0.0"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make_criterion(**changes)


def test_shapes_that_do_not_match_are_refused():
    logits, masks, targets, _ = make_batch()
    criterion = make_criterion()
    with pytest.raises(ValueError, match=r"\(2, 6, 4\).*expected \(B, Q, 5\)"):
        criterion(as_outputs(logits[..., :-1], masks), targets)
    with pytest.raises(ValueError, match="1 targets"):
        criterion(as_outputs(logits, masks), targets[:1])
    with pytest.raises(ValueError, match=r"image 1 .* 1 labels and 2 masks"):
        criterion(as_outputs(logits, masks), [targets[0], {**targets[1], "labels": targets[1]["labels"][:1]}])


RANK_COUNTS = [(3, 2, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0)]  # targets of four images, two per rank; fewer than ranks


def run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        results = []
        for counts in RANK_COUNTS:
            logits, masks, targets, points = make_batch(counts=counts)
            mine = slice(2 * rank, 2 * rank + 2)
            logits, masks = (x.detach()[:, mine].clone().requires_grad_() for x in (logits, masks))
            losses = make_criterion(pinned(points, 2 * rank))(as_outputs(logits, masks), targets[mine])
            total(losses).backward()
            results.append(({name: value.detach() for name, value in losses.items()}, logits.grad, masks.grad))
        torch.save(results, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_are_one_process_with_the_whole_batch(tmp_path):
    """Means over ranks, as DistributedDataParallel averages gradients."""
    multiprocessing.set_forkserver_preload(["fasegr.engine", "tests.engine.tiny_training"])  # as other tests do
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, counts in enumerate(RANK_COUNTS):
        logits, masks, targets, points = make_batch(counts=counts)
        losses = make_criterion(pinned(points))(as_outputs(logits, masks), targets)
        total(losses).backward()
        (first, *first_grads), (second, *second_grads) = ranks[0][case], ranks[1][case]
        for name, value in losses.items():
            torch.testing.assert_close((first[name] + second[name]) / 2, value.detach())
        for a, b, whole in zip(first_grads, second_grads, (logits.grad, masks.grad), strict=True):
            torch.testing.assert_close(torch.cat((a, b), 1) / 2, whole)


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"{GOLDEN} is not there; FASEGR_GOLDEN names its folder")
def test_released_code():
    """Matches and losses of the released FASeg, in float64, with its points pinned."""
    golden = np.load(GOLDEN)
    logits, masks = torch.from_numpy(golden["pred_logits"]), torch.from_numpy(golden["pred_masks"])
    points = torch.from_numpy(golden["point_pattern"])
    targets = [
        {
            "labels": torch.from_numpy(golden[f"target{i}.labels"]),
            "masks": torch.from_numpy(np.unpackbits(golden[f"target{i}.masks"], axis=-1)).bool(),
        }
        for i in range(logits.shape[1])
    ]
    num_points = int(golden["num_points"])
    matcher = HungarianMatcher(class_weight=2.0, mask_weight=5.0, dice_weight=5.0, num_points=num_points)
    criterion = SetCriterion(
        num_classes=int(golden["num_classes"]),
        matcher=matcher,
        no_object_weight=0.1,
        num_points=num_points,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        draw=pinned(points),
    )
    matches = matcher(logits, masks, targets, points[:num_points].expand(len(targets), -1, -1))
    for image, match in enumerate(matches):
        for layer in range(len(logits)):
            expected = golden[f"match.layer{layer}.image{image}"]
            assert np.array_equal(match.queries[layer], expected[0])
            assert np.array_equal(match.targets[layer], expected[1])
    losses = criterion(as_outputs(logits, masks), targets)
    assert len(losses) == 9
    for name, value in losses.items():
        np.testing.assert_allclose(float(value), golden[f"loss.{name}"], rtol=1e-6)
