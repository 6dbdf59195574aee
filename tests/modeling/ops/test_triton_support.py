import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fasegr.modeling.ops import triton_support
from fasegr.modeling.ops.triton_support import has_triton

ROOT = Path(__file__).parents[3]
SHARED_MEMORY = 64 * 1024  # per block, on every GPU since compute capability 7.5


def test_fasegr_needs_no_triton():
    program = "import sys; sys.modules['triton'] = None; import fasegr.modeling"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton, which torch brings on Linux")
@pytest.mark.parametrize("capability", [90])
def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path, capability):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("compile_triton_kernels.py")), str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, _ in compiled} == {"sample", "sample_backward", "sum_by_cell"}
    assert max(int(shared) for _, shared in compiled) <= SHARED_MEMORY


def test_needs_a_compiler_and_the_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(triton_support, "_toolchain", lambda: True)
    assert has_triton(0, torch.float16)
    assert not has_triton(0, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (6, 1))
    assert not has_triton(0, torch.float32)
    monkeypatch.setattr(triton_support, "_toolchain", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert not has_triton(0, torch.float32)


def test_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.delenv("CC", raising=False)
    for found, answer in (("/usr/bin/gcc", True), (None, False)):
        monkeypatch.setattr(triton_support.shutil, "which", lambda name, found=found: found)
        triton_support._toolchain.cache_clear()
        assert triton_support._toolchain() is answer
    triton_support._toolchain.cache_clear()
