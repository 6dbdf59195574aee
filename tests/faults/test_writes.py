"""A full, read-only or broken disk at every kind of write: one message that names the file, and nothing older lost."""

import contextlib
import itertools
import os
import subprocess
from pathlib import Path

import pytest

from tests.faults.amount import in_full, sample
from tests.faults.injection import BROKEN, FULL, READ_ONLY
from tests.faults.runs import Run, Training, differences, wait_until

pytestmark = pytest.mark.faults

FILES = (
    *("model_0000005", "model_final", "model_best", "last_checkpoint", "metrics", "config.yaml", "log.txt"),
    *("events.out", "curves.png", "samples.png"),
)
FAILURES = {
    "full at once": {"errno": FULL, "at": "write", "bytes": 0},
    "full after some bytes": {"errno": FULL, "at": "write", "bytes": 150},
    "read-only": {"errno": READ_ONLY, "at": "open"},
    "broken when flushed": {"errno": BROKEN, "at": "fsync"},
    "read-only at the end": {"errno": READ_ONLY, "at": "replace"},
}
SAYS = {FULL: "No space left on device", READ_ONLY: "Read-only file system", BROKEN: "Input/output error"}


def check_end(training: Training, expected, out, run, said: str, name: str) -> None:
    """One message and exit code 2, or a warning and a finished run; then a resumed run leaves what it should."""
    code = run.wait()
    assert code in (0, 2), run.output
    assert "Traceback" not in run.output
    assert "--- Logging error ---" not in run.output
    if code == 2:
        assert said in run.output
        assert name in run.output
    training.finish(out)
    assert not differences(out, expected)


@pytest.mark.parametrize(("file", "failure"), sample(itertools.product(FILES, FAILURES)))
def test_one_file(training: Training, expected, tmp_path, file, failure):
    fault = FAILURES[failure]
    run = training.start(tmp_path, faults=[{"do": "error", "file": file, **fault}], pictures=".png" in file)
    check_end(training, expected, tmp_path, run, SAYS[fault["errno"]], file)


class SmallDisk:
    """A file system in memory."""

    def __init__(self, folder: Path):
        self.folder = folder

    def mount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)

    def fill(self) -> None:
        """Leave no byte; what is open stays writable, but nothing can grow."""
        with contextlib.suppress(OSError), open(self.folder / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        self.mount("rw,size=64m")
        (self.folder / "filler").unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder]).returncode:
        pytest.skip("only root can mount a small disk")
    yield SmallDisk(folder)
    subprocess.run(["umount", "-l", folder], check=True)


def check_full(training: Training, expected, disk: SmallDisk, run: Run, said: str) -> None:
    """The run ends with one message; when there is room again, a resumed one leaves what it should."""
    assert run.wait() == 2, run.output
    assert "Traceback" not in run.output
    assert "--- Logging error ---" not in run.output
    assert said in run.output
    disk.empty()
    training.finish(disk.folder / "out")
    assert not differences(disk.folder / "out", expected)


@pytest.mark.parametrize("share", sample([i / 20 for i in range(19)]))
def test_a_small_disk(training: Training, uninterrupted, expected, disk, share):
    """It is full at some moment of the run, for every file at once."""
    needed = sum(path.stat().st_size for path in uninterrupted.iterdir()) // 1024
    disk.mount(f"size={max(4, int(needed * share))}k")
    run = training.start(disk.folder / "out")
    check_full(training, expected, disk, run, "No space left on device")


@in_full
def test_a_read_only_disk(training: Training, expected, disk):
    (disk.folder / "out").mkdir()
    disk.mount("ro")
    run = training.start(disk.folder / "out")
    check_full(training, expected, disk, run, "Read-only file system")


@pytest.mark.parametrize("iteration", sample((0, 1, 2, 5, 8, 11), at_least=0))
def test_a_disk_that_fills_up(training: Training, expected, disk, tmp_path, iteration):
    marker, release = tmp_path / "marker", tmp_path / "release"
    pause = {"do": "pause", "marker": str(marker), "release": str(release), "seconds": 30}
    run = training.start(disk.folder / "out", faults=[{**pause, "at": "step", "iteration": iteration}])
    wait_until(marker.exists)
    disk.fill()
    release.touch()
    check_full(training, expected, disk, run, "No space left on device")
