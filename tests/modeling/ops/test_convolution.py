import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.ops import switches
from fasegr.modeling.ops.convolution import PATCH_ELEMENTS, conv2d, weight_gradient


@pytest.fixture(autouse=True)
def avx2_only(monkeypatch):
    """As on a processor without AVX-512."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")


CASES = [  # images, channels in and out, map, kernel, stride, padding
    (2, 3, 4, (9, 11), (3, 3), (1, 1), (1, 1)),
    (1, 3, 8, (17, 19), (7, 7), (2, 2), (3, 3)),
    (2, 5, 6, (9, 8), (3, 3), (2, 1), (1, 0)),
    (1, 4, 2, (8, 8), (3, 5), (1, 1), (0, 2)),
    (2, 64, 65, (96, 64), (3, 3), (1, 1), (1, 1)),  # patches of several blocks
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


def test_an_activation_may_change_the_result_in_place():
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(2, 2, 3, 3, requires_grad=True)
    F.relu_(conv2d(x, weight, None, (1, 1), (1, 1))).sum().backward()
    assert weight.grad.isfinite().all()


def test_the_largest_case_needs_several_blocks():
    _, inner, _, (height, width), (rows, columns), *_ = CASES[-1]
    assert height * width * rows * columns * inner > PATCH_ELEMENTS


def test_weight_gradient():
    x, grad = torch.randn(2, 3, 7, 6, dtype=torch.float64), torch.randn(2, 4, 7, 6, dtype=torch.float64)
    weight = torch.zeros(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, grad)
    torch.testing.assert_close(weight_gradient(grad, x, (3, 3), (1, 1), (1, 1)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_decides_the_type(dtype):
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        out = conv2d(x, weight, None, (1, 1), (1, 1))
    out.sum().backward()
    assert out.dtype == dtype and weight.grad.dtype == torch.float32


def test_the_switch_changes_no_result():
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    grads = []
    for names in (["patch_products"], ["embedding_bag"]):
        with switches.off(*names):
            grads += torch.autograd.grad(conv2d(x, weight, None, (1, 1), (1, 1)).sin().sum(), weight)
    torch.testing.assert_close(*grads)
