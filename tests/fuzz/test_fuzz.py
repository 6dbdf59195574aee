"""Whatever is in a file, there is a result, or one error that names the file or the key. `make fuzz` reads more."""

import pytest

from tests.fuzz.running import Batch

KINDS = ("images", "labels", "instances", "panoptic", "checkpoints", "config_keys", "config_files")


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_files(kind, tmp_path, record_property):
    batch = Batch(kind, tmp_path)
    record_property("fuzz", {kind: dict(batch.counts)})
    if batch.faults:
        pytest.fail(f"{len(batch.faults)} faults:\n\n" + "\n\n".join(batch.faults[:20]), pytrace=False)
