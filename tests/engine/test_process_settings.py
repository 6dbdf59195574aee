"""Settings that cannot be undone are tested in a subprocess."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fasegr.engine import process_settings

FILE = Path(__file__).parents[2] / "fasegr" / "engine" / "process_settings.py"

# Allocates and frees 64 MB twenty times; prints how many page faults that took.
PROGRAM = """
import importlib.util, resource, sys
import numpy
spec = importlib.util.spec_from_file_location("process", sys.argv[1])
process = importlib.util.module_from_spec(spec)
spec.loader.exec_module(process)
if sys.argv[2] == "tuned":
    assert process.tune_allocator()
numpy.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    numpy.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_threads_are_those_asked_for_or_torchs_own():
    threads = torch.get_num_threads()
    try:
        process_settings.tune_process(tuned_allocator=False, threads=3)
        assert torch.get_num_threads() == 3
        process_settings.tune_process(tuned_allocator=False, threads=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_an_allocator_without_the_setting_is_told_of_and_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with caplog.at_level("DEBUG"):
        process_settings.tune_process(tuned_allocator=True, threads=0)
    assert "SPEED.TUNED_ALLOCATOR" in caplog.text


def page_faults(setting):
    command = [sys.executable, "-c", PROGRAM, str(FILE), setting]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_deterministic(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:  # these settings can be taken back, so this process will do
        process_settings.be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_evaluation_does_not_time_every_size(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(KeyError), process_settings.sizes_that_vary():
        assert not torch.backends.cudnn.benchmark
        raise KeyError
    assert torch.backends.cudnn.benchmark


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_memory_stays_with_the_process():
    plain, tuned = page_faults("plain"), page_faults("tuned")
    assert tuned < plain / 10, "and importing the module changes nothing"
