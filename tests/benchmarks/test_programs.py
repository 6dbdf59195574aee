import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import programs


def test_an_evaluation(case):
    found = programs.times(case("testing", size=(64, 64), batch=2, rounds=1))
    assert [set(reading) for reading in found["seconds"]["ours"]] == [{"whole"}]
    assert len(found["others"]) == 1


def test_a_step_of_two_runs_is_read_from_their_metrics(case, monkeypatch):
    def trained(command, **_):
        assert command[command.index("--jobs") + 1] == "2"
        for seed, seconds in (("seed1", (9.0, 0.2)), ("seed2", (8.0, 0.4))):
            folder = Path(command[command.index("--output") + 1], "table5", seed)
            folder.mkdir(parents=True)
            lines = [{"iteration": i, "time": t} for i, t in zip((19, 39), seconds, strict=True)]
            lines.append({"iteration": 39, "sem_seg/mIoU": 1.0})
            (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", trained)
    found = programs.times(case("runs", batch=2, rounds=1))
    assert found["seconds"]["ours"] == [{"whole": pytest.approx(0.3)}]
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "no memory")
    )
    with pytest.raises(RuntimeError, match="exited with 1:\nno memory"):
        programs.times(case("runs", batch=2, rounds=1))
