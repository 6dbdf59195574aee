"""kill -9 at any moment: what the resumed run leaves is, byte for byte, what the uninterrupted one leaves."""

import random
import time

import pytest

from tests.faults.amount import count
from tests.faults.runs import Training, differences, gone, wait_until

pytestmark = pytest.mark.faults

RANDOM_MOMENTS = 80
MOMENTS_OF_WRITES = 20
REPLACED = ("write", "write", "replace", "replaced")
DURABLE = (*REPLACED, "fsync")
FILES = (
    ("model_0000005", DURABLE),
    ("model_best", DURABLE),
    ("last_checkpoint", DURABLE),
    ("metrics", ("write",)),
    ("model_best", DURABLE),
    ("config.yaml", REPLACED),
    ("model_final", DURABLE),
)


@pytest.fixture(scope="module")
def seconds(training: Training, expected, tmp_path_factory) -> float:
    """How long an uninterrupted run takes that is forked as the killed ones are; it leaves the same."""
    out = tmp_path_factory.mktemp("forked")
    start = time.monotonic()
    run = training.start(out, pictures=True)
    assert run.wait() == 0, run.output
    seconds = time.monotonic() - start
    assert not differences(out, expected)
    return seconds


@pytest.mark.parametrize("i", range(count(RANDOM_MOMENTS)))
def test_at_a_random_moment(training: Training, expected, seconds, tmp_path, i):
    """Every fourth run is killed twice, every second one has data workers."""
    moments = random.Random(f"moment {i}")
    workers = ("DATALOADER.NUM_WORKERS", str(i % 2 * 2))
    killed = []
    for kill in range(2 if i % 4 == 3 else 1):
        run = training.start(tmp_path, *workers, resume=kill > 0, pictures=True)
        time.sleep(moments.uniform(0, seconds))
        run.kill()
        run.wait()
        killed.append(run)
    training.finish(tmp_path, *workers)
    assert not differences(tmp_path, expected)
    wait_until(lambda: all(gone(run.pid) for run in killed), 30)  # workers notice that they are orphans


@pytest.mark.parametrize("i", range(count(MOMENTS_OF_WRITES)))
def test_in_the_middle_of_a_write(training: Training, uninterrupted, expected, tmp_path, i):
    """Of a file's bytes, or before they are on the disk, before the file has its name, or right after."""
    moments = random.Random(f"write {i}")
    name, places = FILES[i % len(FILES)]
    bests = (uninterrupted / "log.txt").read_text().count("the best so far")
    size = next(path.stat().st_size for path in uninterrupted.iterdir() if path.name.startswith(name))
    fault = {"do": "kill", "file": name, "at": moments.choice(places), "bytes": moments.randrange(size)}
    run = training.start(tmp_path, faults=[{**fault, "skip": moments.randrange(bests) if name == "model_best" else 0}])
    assert run.wait() == -9, run.output
    training.finish(tmp_path)
    assert not differences(tmp_path, expected), fault
