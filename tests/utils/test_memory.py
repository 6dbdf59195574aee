import mmap
import sys

import pytest
import torch

from fasegr.utils.memory import current_memory, peak_memory, reset_peak_memory

CPU = torch.device("cpu")


def test_peak_is_not_below_what_is_in_use():
    assert peak_memory(CPU) >= current_memory(CPU) * 0.9 > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a process")
def test_the_peak_begins_anew():
    size = 64 * 2**20
    mmap.mmap(-1, size).write(bytes(size))
    assert reset_peak_memory(CPU)
    before = peak_memory(CPU)
    held = mmap.mmap(-1, size)  # not a tensor: malloc may reuse freed memory that still counts
    held.write(bytes(size // 2) * 2)
    assert peak_memory(CPU) - before > size / 2
    del held
