import pytest
import torch

from fasegr.modeling.ops import switches
from fasegr.modeling.ops.mask_logits import mask_logits


def leaves(layers=3):
    torch.manual_seed(0)
    embeddings = [torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(layers)]
    return embeddings, torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)


def plain(embeddings, features):
    return [torch.einsum("bqd,bdhw->bqhw", e, features) for e in embeddings]


@pytest.mark.parametrize("rows", [[], [0], [2, 5], list(range(7))])
def test_equals_products_with_their_gradients(rows):
    embeddings, features = leaves()
    seeds = []
    for layer in range(3):
        seed = torch.zeros(2, 7, 3, 5, dtype=torch.float64)
        seed[layer % 2, rows] = torch.randn(len(rows), 3, 5, dtype=torch.float64)  # of the other image nothing
        seeds.append(seed)
    results = []
    for form in (mask_logits, plain):
        masks = form(embeddings, features)
        results.append((masks, torch.autograd.grad(masks, [*embeddings, features], seeds)))
    for ours, reference in zip(*(list(masks) + list(grads) for masks, grads in results), strict=True):
        torch.testing.assert_close(ours, reference)


def test_a_layer_that_no_loss_reads():
    embeddings, features = leaves()
    mask_logits(embeddings, features)[1].square().sum().backward()
    grad = features.grad.clone()
    features.grad = None
    plain(embeddings, features)[1].square().sum().backward()
    torch.testing.assert_close(grad, features.grad)
    assert not embeddings[0].grad.any()
    assert embeddings[1].grad.any()


def test_nan_is_not_taken_for_zero():
    embeddings, features = leaves(1)
    (masks,) = mask_logits(embeddings, features)
    seed = torch.zeros_like(masks)
    seed[1, 3, 0, 0] = float("nan")
    masks.backward(seed)
    assert features.grad[1].isnan().any()
    assert embeddings[0].grad[1, 3].isnan().all()


def test_other_types_and_the_switch():
    embeddings, features = leaves(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert mask_logits([embeddings[0].float()], features.float())[0].dtype == torch.bfloat16
    with switches.off("sparse_mask_gradient"):
        torch.testing.assert_close(mask_logits(embeddings, features), plain(embeddings, features))
