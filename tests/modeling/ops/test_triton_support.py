import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
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


@pytest.fixture
def gpu(monkeypatch):
    """As on a machine with an NVIDIA GPU; returns the function that sets its compute capability."""

    def capability(*numbers):
        triton_support._capability.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: numbers)

    def forget():
        for function in (triton_support._capability, triton_support._toolchain_problem, triton_support._warn_once):
            function.cache_clear()

    forget()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    capability(8, 0)
    yield capability
    forget()


def compiler(folder, script):
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_needs_the_capability_of_the_type(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler(tmp_path, "exit 0"))
    gpu(7, 0)
    assert has_triton(0, torch.float16)
    assert not has_triton(0, torch.bfloat16)
    gpu(6, 1)
    assert "need compute capability 7.0; this GPU has 6.1" in triton_support.why_not(0, torch.float32)


def test_without_a_gpu_nothing_is_asked_of_it():
    if not torch.cuda.is_available():
        assert not has_triton(0, torch.float32)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "echo 'm.c:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1",
            "error: Python.h: No such file",
        ),
        ("echo 'cc: error: cannot find ld' >&2; exit 1", "cannot find ld"),
        ("exit 3", "exit code 3"),
        (None, "cannot be run"),
    ],
)
def test_a_compiler_that_cannot_make_modules_is_said_once_with_what_to_install(
    script, problem, gpu, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv("CC", compiler(tmp_path, script) if script else str(tmp_path / "none"))
    for dtype in (torch.float32, torch.float16, torch.float32):
        assert not has_triton(0, dtype)
    (record,) = caplog.records
    assert problem in record.message and "apt install gcc" in record.message


def test_the_headers_of_this_python_are_looked_for(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler(tmp_path, f'echo "$@" > {tmp_path}/arguments'))
    assert has_triton(0, torch.float32)
    includes = [a[2:] for a in (tmp_path / "arguments").read_text().split() if a.startswith("-I")]
    assert sysconfig.get_paths()["include"] in includes


def test_no_compiler_at_all(gpu, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    assert "there is no C compiler" in triton_support.why_not(0, torch.float32)


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_the_compiler_of_this_machine(gpu, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    assert (triton_support.why_not(0, torch.float32) == "") is headers
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    triton_support._toolchain_problem.cache_clear()
    assert "Python.h" in triton_support.why_not(0, torch.float32)
