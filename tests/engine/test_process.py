"""In a process of its own each, since the settings would stay."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "fasegr" / "engine" / "process.py"

# Allocates and frees 64 MB twenty times; prints how many pages the system had to hand out for that.
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


def page_faults(setting):
    command = [sys.executable, "-c", PROGRAM, str(FILE), setting]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_memory_stays_with_the_process():
    plain, tuned = page_faults("plain"), page_faults("tuned")
    assert tuned < plain / 10, "and importing the module alone changes nothing"
