import pytest
import torch
from torch.nn import functional as F

from fasegr.modeling.ops import linear as module
from fasegr.modeling.ops import switches as fast_paths
from fasegr.modeling.ops.linear import Linear, linear


@pytest.fixture
def through_onednn(monkeypatch):
    """As on a processor where MKL is slow, at any size and in the precision of the comparison."""
    monkeypatch.setattr(module, "SLOW_MKL", True)
    monkeypatch.setattr(module, "_suits", lambda x, weight: True)


@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_a_linear_layer_with_its_gradients(through_onednn, shape, with_bias):
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True) if with_bias else None
    wanted = [t for t in (x, weight, bias) if t is not None]
    ours, reference = linear(x, weight, bias), F.linear(x, weight, bias)
    torch.testing.assert_close(ours, reference)
    seed = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, wanted, seed), torch.autograd.grad(reference, wanted, seed), strict=True):
        torch.testing.assert_close(a, b)


def test_a_slice_of_tokens_and_float32(through_onednn):
    layer = Linear(8, 3)
    tokens = torch.randn(2, 20, 8)[:, 5:17]
    torch.testing.assert_close(layer(tokens), F.linear(tokens, layer.weight, layer.bias))


def test_mkl_is_not_slow_where_avx2_is_the_widest(monkeypatch):
    monkeypatch.setattr(module.platform, "processor", lambda: "AuthenticAMD")
    monkeypatch.setattr(module.Path, "exists", lambda path: False)
    for capability, slow in (("AVX512", True), ("AVX2", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
        assert module._mkl_is_slow() == (slow and libraries)


def test_is_for_many_tokens_in_float32_on_a_slow_mkl(monkeypatch):
    used = []
    monkeypatch.setattr(module.F, "conv2d", lambda *args: used.append(args) or torch.zeros(1, 4, 2048, 1))
    many, weight = torch.zeros(1, 2048, 8), torch.zeros(4, 8)
    monkeypatch.setattr(module, "SLOW_MKL", False)
    linear(many, weight)
    monkeypatch.setattr(module, "SLOW_MKL", True)
    linear(many[:, :100], weight)
    linear(many.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        linear(many, weight)
    with fast_paths.off("onednn_linear"):
        linear(many, weight)
    assert not used
    linear(many, weight)
    assert len(used) == 1
