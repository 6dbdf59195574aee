"""Apple's GPUs, as far as can be told without one: from fake tensors and from torch's own table of operations."""

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasegr import build_model, load_cfg
from fasegr.modeling import ops
from fasegr.modeling.ops import switches, triton_deformable_attention
from fasegr.modeling.ops.point_sample import supports_table

ROOT = Path(__file__).parents[2]
# Computed on the CPU where torch lacks them, since omp_policy.py sets PYTORCH_ENABLE_MPS_FALLBACK.
LEFT_TO_THE_CPU = {"aten::grid_sampler_2d_backward", "aten::native_group_norm_backward", "aten::take"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "GN"]
    return build_model(load_cfg(ROOT / "configs/quickstart/faseg_scenes.yaml", options))


class Operations(TorchDispatchMode):
    """Collects the names of the operations, and which of them have made a tensor of float64."""

    def __init__(self):
        super().__init__()
        self.names, self.in_float64 = set(), set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        overload = operation._overloadname.replace("default", "")
        name = f"{operation._schema.name}.{overload}".rstrip(".")
        self.names.add(name)
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                self.in_float64.add(name)
        return out


def kernels_on_mps() -> dict[str, bool]:
    """Each operation of torch, and whether it has a kernel for MPS or is made of others."""
    torchgen = pytest.importorskip("torchgen")
    table = Path(torchgen.__file__).with_name("packaged") / "ATen/native/native_functions.yaml"
    if not table.exists():
        pytest.skip("this torch comes without its table of operations")
    found, delegates = {}, {}
    for entry in re.split(r"^- func: ", table.read_text(), flags=re.M)[1:]:
        name = entry[: entry.index("(")]
        dispatch = re.search(r"^  dispatch:\n((?:    .*\n)+)", entry, flags=re.M)
        keys = dispatch[1] if dispatch else "CompositeImplicitAutograd"
        found[name] = bool(re.search(r"\bMPS\b|Composite", keys))
        if delegate := re.search(r"^  structured_delegate: (\S+)", entry, flags=re.M):
            delegates[name] = delegate[1]
    for name, delegate in delegates.items():
        found[name] = found[delegate]
    return found


def sample(size: int = 64) -> dict:
    image = torch.randint(0, 256, (3, size, size), dtype=torch.uint8)
    masks = torch.rand(2, size, size) > 0.5
    return {"image": image, "height": size, "width": size, "labels": torch.tensor([1, 3]), "masks": masks}


def test_training_and_inference_need_neither_float64_nor_an_operation_that_mps_lacks(model, monkeypatch):
    known = kernels_on_mps()
    sent = set()
    copy = ops.to_device
    monkeypatch.setattr(ops, "to_device", lambda x, device: sent.add(x.dtype) or copy(x, device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0, fused=True)
    seen = Operations()
    # the forms that other devices than CPUs and NVIDIA's GPUs get
    with switches.off(), sdpa_kernel(SDPBackend.MATH), seen:
        sum(model.train()([sample(), sample()]).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        with torch.no_grad():
            model.eval()([sample()])
    names = {name for name in seen.names if name.startswith("aten::")}
    assert len(names) > 50
    assert seen.in_float64 <= {"aten::lift_fresh"}  # numpy's arrays, on the host
    assert torch.uint8 in sent and torch.float64 not in sent
    assert {name for name in names if not known[name.removeprefix("aten::")]} <= LEFT_TO_THE_CPU


def test_forms_that_were_not_tried_on_mps_are_not_taken():
    with FakeTensorMode():
        assert not supports_table(torch.rand(5, 2, device="mps"))
        assert not triton_deformable_attention.supports(torch.rand(1, 4, 2, 32, device="mps"), levels=1)
        assert ops.class_argmax(torch.rand(3, 4, 4, device="mps")).dtype == torch.uint8
    assert supports_table(torch.rand(5, 2))


def test_copies_to_mps_are_waited_for(monkeypatch):
    """torch's others read memory of the host after it was freed, https://github.com/pytorch/pytorch/issues/139550."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: asked.append((args, kwargs)) or self)
    ops.to_device(torch.zeros(2), torch.device("mps"))
    assert asked == [((torch.device("mps"),), {})]
