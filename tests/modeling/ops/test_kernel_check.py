"""The check of a kernel at its first use, with Triton's interpreter where there is no GPU."""

import json
import os
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fasegr.modeling import ops
from fasegr.modeling.ops import kernel_check, switches, triton_deformable_attention
from fasegr.modeling.ops.kernel_check import Deviation, passes
from fasegr.modeling.ops.triton_deformable_attention import sample_by_triton

CPU = torch.device("cpu")
SHAPES = [(3, 4)]


def right():
    return [Deviation("the result", 1e-7, 1e-5)]


def wrong():
    return [Deviation("the result", 1e-7, 1e-5), Deviation("the gradient of x", float("nan"), 1e-5)]


def broken():
    raise RuntimeError("ptxas failed\nmore lines")


def never():
    raise AssertionError("compared again")


@pytest.fixture(autouse=True)
def new_process(monkeypatch, tmp_path):
    """Nothing is known yet, and the cache is empty. Returns a function that forgets as a new process does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_check, "_passed", {})
    return kernel_check._passed.clear


def check(compare, source=__file__, **settings):
    return passes("kernel", CPU, {"dtype": torch.float32, **settings}, [source], compare)


def test_what_has_passed_is_compared_once_and_remembered(new_process):
    assert check(right) and check(never)
    new_process()
    assert check(never)


def test_what_has_failed_is_compared_once_in_each_process(new_process, caplog):
    for compare in (wrong, broken):
        assert not check(compare) and not check(never)
        new_process()
    first, second = caplog.messages
    assert "the gradient of x is off by nan" in first and "plain form" in first
    assert "RuntimeError: ptxas failed" in second
    assert check(right)


def test_one_warning_for_a_kernel(caplog):
    assert not check(wrong) and not check(broken, dim=32) and not check(wrong, dim=64)
    assert len(caplog.messages) == 1


def test_another_source_setting_or_version_is_compared_again(new_process, monkeypatch, tmp_path):
    assert check(right)
    new_process()
    (tmp_path / "kernel.py").write_text("changed")
    for other in ({"source": tmp_path / "kernel.py"}, {"dtype": torch.float16}):
        assert not check(wrong, **other)
    new_process()
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert not check(wrong)


@pytest.mark.parametrize("content", [b"", b'{"kernel": "ker', b"\xff\x00", b"[]", b"null", b'{"kernel": "other"}'])
def test_a_file_that_is_torn_or_foreign_counts_for_nothing(content, new_process, tmp_path):
    assert check(right)
    (file,) = (tmp_path / "cache/fasegr/kernels").iterdir()
    file.write_bytes(content)
    new_process()
    assert not check(wrong)
    new_process()
    assert check(right)
    assert json.loads(file.read_text())["kernel"] == "kernel"


@pytest.mark.skipif(os.name == "nt", reason="of POSIX")
def test_without_a_folder_to_write_to_nothing_is_remembered(new_process, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # as root one may write to any folder
    assert check(right)
    new_process()
    assert not check(wrong)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(kernel_check.Path, "home", broken)
    new_process()
    assert check(right)


def test_fake_tensors_are_not_compared_and_nothing_is_concluded():
    with FakeTensorMode():
        assert check(never)
    assert not check(wrong)


def test_a_graph_that_is_recorded_has_no_comparison_in_it(monkeypatch):
    arguments = ("kernel", torch.device("cuda", 0), {}, [__file__])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not passes(*arguments, never)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(kernel_check, "_machine", lambda device: {"device": "a GPU"})
    assert passes(*arguments, right)


@pytest.fixture
def kernels_in_use(monkeypatch):
    """Deformable attention takes the kernels on this machine, as on a GPU."""
    pytest.importorskip("triton")
    monkeypatch.setattr(triton_deformable_attention, "supports", lambda *args, **kwargs: True)
    if not torch.cuda.is_available():
        with switches.off("embedding_bag"):
            yield torch.device("cpu")
    else:
        yield torch.device("cuda", 0)


def inputs(device):
    generator = torch.Generator().manual_seed(0)
    x, y, weight = torch.rand(3, 1, 5, 1, 1, 1, generator=generator)
    value = torch.randn(1, 12, 1, 16, generator=generator)
    return [t.to(device).requires_grad_() for t in (value, 4 * x, 3 * y, weight)]


def calls(monkeypatch, kernel):
    """Put `kernel` in the place of the one of the tree; returns the list of the queries of each call of it."""
    seen = []

    def counted(value, shapes, x, y, weight):
        seen.append(x.shape[1])
        return kernel(value, shapes, x, y, weight)

    monkeypatch.setattr(triton_deformable_attention, "sample_by_triton", counted)
    return seen


def test_the_kernels_pass_and_are_used(kernels_in_use, monkeypatch):
    seen = calls(monkeypatch, sample_by_triton)
    state = torch.get_rng_state()
    given = inputs(kernels_in_use)
    with torch.inference_mode(), torch.autocast(kernels_in_use.type, torch.bfloat16):
        first = ops.deformable_attention(given[0], SHAPES, *given[1:])
        again = ops.deformable_attention(given[0], SHAPES, *given[1:])
    assert len(seen) == 3 and seen[1:] == [5, 5]  # the first is the check's
    with switches.off():
        plain = ops.deformable_attention(given[0], SHAPES, *given[1:])
    torch.testing.assert_close(first, plain)
    torch.testing.assert_close(again, plain)
    assert torch.equal(torch.get_rng_state(), state)  # a resumed training depends on it


def off_by_a_pixel(value, shapes, x, y, weight):
    return sample_by_triton(value, shapes, x + 1, y, weight)


def without_gradient_of_weights(value, shapes, x, y, weight):
    return sample_by_triton(value, shapes, x, y, weight.detach()) + 0 * weight.sum()


def not_compiling(value, shapes, x, y, weight):
    raise RuntimeError("no kernel image is available")


@pytest.mark.parametrize("kernel", [off_by_a_pixel, without_gradient_of_weights, not_compiling])
def test_a_wrong_kernel_is_not_used(kernel, kernels_in_use, monkeypatch, caplog):
    seen = calls(monkeypatch, kernel)
    given = inputs(kernels_in_use)
    found, grads = [], []
    for _ in range(2):
        out = ops.deformable_attention(given[0], SHAPES, *given[1:])
        found.append(out)
        grads.append(torch.autograd.grad(out.square().sum(), given))
    with switches.off():
        plain = ops.deformable_attention(given[0], SHAPES, *given[1:])
    assert len(seen) == 1 and len(caplog.messages) == 1
    for out, of_out in zip(found, grads, strict=True):
        torch.testing.assert_close(out, plain)
        torch.testing.assert_close(of_out, torch.autograd.grad(plain.square().sum(), given, retain_graph=True))


@pytest.mark.parametrize(("kernel", "uses"), [(sample_by_triton, True), (not_compiling, False)])
def test_the_check_runs_while_torch_compile_traces(kernel, uses, kernels_in_use, monkeypatch):
    monkeypatch.setattr(triton_deformable_attention, "sample_by_triton", kernel)
    given = inputs(kernels_in_use)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda *t: ops.deformable_attention(t[0], SHAPES, *t[1:]), fullgraph=True, backend=backend, dynamic=False
    )
    with torch.no_grad():
        out = compiled(*given)
    with switches.off():
        torch.testing.assert_close(out, ops.deformable_attention(given[0], SHAPES, *given[1:]))
    (graph,) = graphs
    assert ("deformable_triton" in graph.code) is uses


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_other_forms_are_within_the_limits_that_a_wrong_one_exceeds(dtype):
    forms = sys.modules["fasegr.modeling.ops.deformable_attention"]
    sizes = {"dtype": dtype, "heads": 2, "dim": 16, "levels": 3, "points": 2}
    for form in (forms.sample_by_bag, forms.sample_by_grid):
        assert not any(d.too_large for d in forms.compare_with_grid(form, CPU, **sizes))

    def no_rows_below(value, shapes, x, y, weight):
        return forms.sample_by_grid(value, shapes, x, y.clamp(max=shapes[0][0] - 1), weight)

    assert any(d.too_large for d in forms.compare_with_grid(no_rows_below, CPU, **sizes))
