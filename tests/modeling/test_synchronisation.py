"""Nothing in the forward pass waits for the GPU: checked by the calls on fake tensors that claim to be on one."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fasegr
from fasegr.modeling.ops import triton_deformable_attention
from tests.modeling.meta_arch.test_segmentor import CONFIG, SMALL, samples

aten = torch.ops.aten
# Operations that copy numbers to the host, or whose result has a size that depends on values.
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.is_nonzero.default,
    aten.equal.default, aten._unique2.default, aten.unique_dim.default,
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Raises an error where the host would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
        on_gpu = any(isinstance(a, torch.Tensor) and a.is_cuda for a in flat)
        if func in WAITS and on_gpu:
            raise AssertionError(f"{func} waits for the GPU")
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            kinds = {index.dtype for index in args[1] if index is not None}
            if on_gpu and kinds & {torch.bool, torch.uint8}:
                raise AssertionError("indexing with bool counts on the GPU")
        out = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            moved = args[0].device != (out if func is aten._to_copy.default else args[1]).device
            asynchronous = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if moved and not asynchronous:
                raise AssertionError("a copy between host and GPU is waited for")
        return out


@pytest.fixture
def on_fake_gpu(monkeypatch):
    """Tensors without values, as if every kernel existed."""
    if not torch.cuda.is_available() and not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip(f"torch {torch.__version__} computes with fake tensors of a GPU only where there is one")
    monkeypatch.setattr(triton_deformable_attention, "has_triton", lambda index, dtype: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where, **how: self)  # created there; these cannot be moved
    with FakeTensorMode():
        yield


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (lambda x: x.sum().item(), "local_scalar"),
        (lambda x: x[x > 0], "bool"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.cpu(), "copy"),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), "copy"),
    ],
)
def test_waiting_is_noticed(on_fake_gpu, line, message):
    x = torch.empty(3, device="cuda")
    with pytest.raises(AssertionError, match=message), NoWaiting():
        line(x)


def loss_of(outputs):
    return {"loss_ce": outputs["pred_masks"].sum()}


def on_gpu(*opts):
    cfg = fasegr.load_cfg(CONFIG, [*SMALL, *opts])
    cfg.MODEL.DEVICE = "cuda"
    with torch.device("cuda"):
        model = fasegr.build_model(cfg)
    return model, samples()


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_training_up_to_the_losses(on_fake_gpu, monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # without a GPU
    model, batch = on_gpu()
    seen = []
    model.criterion.forward = lambda outputs, targets, _: seen.append((outputs, targets)) or loss_of(outputs)
    with NoWaiting(), torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
        model(batch)
    ((outputs, targets),) = seen
    assert outputs["pred_masks"].is_cuda
    assert outputs["pred_masks"].dtype == (dtype or torch.float32)
    assert all(target["masks"].is_cuda and target["labels"].is_cuda for target in targets)


VARIANTS = [
    [],
    ["MODEL.FASEG.HIGH_RES.SELECTION", "pixel"],
    ["MODEL.FASEG.POSITIONAL_QUERY", "learnable", "MODEL.FASEG.HIGH_RES.ATTENTION", "none"],
]


@pytest.mark.parametrize(
    ("opts", "output"),
    [*zip(VARIANTS, ["scores", "labels", "scores"], strict=True)],
    ids=["faseg", "pixels", "mask2former"],
)
def test_inference(on_fake_gpu, opts, output):
    model, batch = on_gpu("MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", output, *opts)
    with torch.no_grad(), NoWaiting():
        results = model.eval()(batch)
    name = "sem_seg_labels" if output == "labels" else "sem_seg"
    assert [tuple(result[name].shape[-2:]) for result in results] == [(64, 96), (40, 50)]
    assert all(result[name].is_cuda for result in results)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("opts", VARIANTS, ids=["faseg", "pixels", "mask2former"])
@pytest.mark.parametrize("training", [True, False])
def test_on_a_gpu(opts, training):
    """The same, checked by CUDA itself."""
    model, batch = on_gpu(*opts)
    model.train(training)
    model.criterion.forward = lambda outputs, targets, _: loss_of(outputs)
    with torch.set_grad_enabled(training):
        model(batch)  # compiles kernels and creates handles, which may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
