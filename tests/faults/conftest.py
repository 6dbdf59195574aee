"""One fork server and one uninterrupted training for all tests of a process."""

import os

import pytest

from fasegr.data.datasets.scenes.semantic import generate_scenes, scenes_folder
from tests.faults.runs import ForkServer, Training, left_by, write_config


@pytest.fixture(scope="session")
def training(tmp_path_factory):
    """The smallest training, on a few painted scenes."""
    if not hasattr(os, "fork") or not os.path.isdir("/proc/self/fd"):
        pytest.skip("these tests fork, and look into /proc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
        generate_scenes(scenes_folder(), {"train": 6, "val": 3}, size=64)
        server = ForkServer(tmp_path_factory.mktemp("logs"))
        yield Training(server, write_config(tmp_path_factory.mktemp("config")))
        server.close()


@pytest.fixture(scope="session")
def uninterrupted(training, tmp_path_factory):
    """OUTPUT_DIR of a training that nothing happened to, started by itself."""
    out = tmp_path_factory.mktemp("uninterrupted")
    process = training.alone(out)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return out


@pytest.fixture(scope="session")
def expected(uninterrupted):
    """All that this training left."""
    return left_by(uninterrupted)


@pytest.fixture(scope="session")
def two_expected(training, tmp_path_factory):
    """All that a training of two processes left."""
    out = tmp_path_factory.mktemp("two")
    for run in training.start_two(out):
        assert run.wait() == 0, run.output
    return left_by(out)
