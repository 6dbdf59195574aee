"""What all tests need of the process that runs them."""

import logging
import os

# One thread, for this process and those that tests start: two processes with threads would fight for two cores, and
# results are compared bit for bit. To be set before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton's kernels run in its interpreter; to be set before it is imported


@pytest.fixture(autouse=True)
def _own_log():
    """A program that a test runs sets up the log, for an output that ends with the test."""
    logger = logging.getLogger("fasegr")
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)
