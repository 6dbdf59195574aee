import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from fasegr.modeling.ops import convolution, winograd
from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.convolution import conv2d, weight_gradient


@pytest.fixture(autouse=True)
def narrow_vectors(monkeypatch):
    """As on a processor without AVX-512."""
    monkeypatch.setattr(convolution, "NARROW_VECTORS", True)


CASES = [  # images, channels in and out, map, kernel, stride, padding
    (2, 3, 4, (9, 11), (3, 3), (1, 1), (1, 1)),
    (1, 3, 8, (17, 19), (7, 7), (2, 2), (3, 3)),
    (2, 5, 6, (9, 8), (3, 3), (2, 1), (1, 0)),
    (1, 4, 2, (8, 8), (3, 5), (1, 1), (0, 2)),
    (2, 128, 129, (64, 64), (3, 3), (1, 1), (1, 1)),  # by Winograd's algorithm
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_a_convolution_with_its_gradients(case, layout):
    torch.manual_seed(0)
    images, inner, outer, size, kernel, stride, padding = case
    x = torch.randn(images, inner, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(outer, inner, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(outer, dtype=torch.float64, requires_grad=True)
    ours, reference = conv2d(x, weight, bias, stride, padding), F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(ours, reference)
    seed = torch.randn_like(reference)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), seed) for y in (ours, reference)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_only_the_gradients_asked_for(trained):
    given = {"x": torch.randn(1, 2, 5, 5), "weight": torch.randn(3, 2, 3, 3), "bias": torch.randn(3)}
    given[trained].requires_grad_()
    grads = []
    for form in (conv2d, F.conv2d):
        form(given["x"], given["weight"], given["bias"], (1, 1), (1, 1)).square().sum().backward()
        grads.append(given[trained].grad.clone())
        given[trained].grad = None
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("channels", "size"), [(2, 4), (128, 64)])
def test_an_activation_may_change_the_result_in_place(channels, size):
    x, weight = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3, requires_grad=True)
    F.relu_(conv2d(x, weight, None, (1, 1), (1, 1))).sum().backward()
    assert weight.grad.isfinite().all()


def test_patches_of_several_blocks(monkeypatch):
    monkeypatch.setattr(convolution, "PATCH_ELEMENTS", 100)
    x, grad = torch.randn(2, 3, 7, 6, dtype=torch.float64), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    weight = torch.zeros(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, grad)
    torch.testing.assert_close(weight_gradient(grad, x, (3, 3), (1, 1), (1, 1)), expected)


def test_where_the_plain_form_is_taken(monkeypatch):
    used = []
    monkeypatch.setattr(convolution, "_forward", lambda *args: used.append("forward"))
    monkeypatch.setattr(convolution._Convolution, "apply", lambda *args: used.append("function"))
    x, weight = torch.zeros(1, 2, 4, 4), torch.zeros(2, 2, 3, 3, requires_grad=True)

    def taken(x, weight):
        used.clear()
        conv2d(x, weight, None, (1, 1), (1, 1))
        return used[0] if used else "plain"

    assert taken(x, weight) == "function"
    assert taken(x, weight.detach()) == "forward"
    with torch.no_grad():
        assert taken(x, weight) == "forward"
    with fast_paths.off("patch_products"):
        assert taken(x, weight) == "plain"
    assert taken(x.clone().requires_grad_(), weight.detach()) == "function"
    assert taken(x, torch.zeros(2, 2, 1, 1)) == "plain"
    assert taken(x.bfloat16(), weight.bfloat16()) == "plain"
    with torch.autocast("cpu", torch.bfloat16):
        assert taken(x, weight) == "plain"
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert taken(torch.zeros(1, 2, 4, 4), weight.detach()) == "plain"
    monkeypatch.setattr(convolution, "NARROW_VECTORS", False)
    assert taken(x, weight) == "plain"


def test_winograd_has_a_switch(monkeypatch):
    used = []
    original = winograd.conv3x3
    monkeypatch.setattr(winograd, "conv3x3", lambda *args: used.append(args) or original(*args))
    x, weight = torch.randn(1, 128, 64, 64), torch.randn(128, 128, 3, 3)
    with fast_paths.off("winograd"):
        plain = conv2d(x, weight, None, (1, 1), (1, 1))
    assert not used
    torch.testing.assert_close(conv2d(x, weight, None, (1, 1), (1, 1)), plain, rtol=1e-3, atol=1e-2)
    assert len(used) == 1
    conv2d(x, weight, None, (2, 2), (1, 1))
    assert len(used) == 1
