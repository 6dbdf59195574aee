import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparation import Job, is_made, make_label_map, make_label_maps, run

from fasegr.data.image_io import BadFile, read_label


def plus_one(path: Path) -> np.ndarray:
    labels = read_label(path)
    if labels.max() > 100:
        raise BadFile(f"{path}: holds {labels.max()}")
    return labels + np.uint8(1)


@pytest.fixture
def jobs(tmp_path):
    jobs = []
    for i in range(5):
        job = Job(tmp_path / f"{i}.png", tmp_path / f"{i}.jpg", tmp_path / "made" / f"{i}.png")
        Image.fromarray(np.full((6, 8), i, np.uint8)).save(job.source)
        Image.new("RGB", (8, 6)).save(job.image)
        jobs.append(job)
    return jobs


@pytest.mark.parametrize("workers", [1, 2])
def test_all_are_made_once(jobs, workers, capsys):
    assert make_label_maps(jobs[:2], plus_one, 1, "some")[:2] == (2, 0)
    stamps = [job.target.stat().st_mtime_ns for job in jobs[:2]]
    assert make_label_maps(jobs, plus_one, workers, "rest") == (3, 2, [])
    assert [job.target.stat().st_mtime_ns for job in jobs[:2]] == stamps
    assert [read_label(job.target).max() for job in jobs] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in jobs[0].target.parent.iterdir()) == [f"{i}.png" for i in range(5)]
    assert "rest: 100%" in capsys.readouterr().err


def test_a_bad_file_does_not_stop_the_rest(jobs):
    Image.fromarray(np.full((6, 8), 101, np.uint8)).save(jobs[0].source)
    jobs[1].source.write_bytes(b"no image")
    Image.new("RGB", (8, 7)).save(jobs[2].image)
    jobs[3].image.unlink()
    outcome = make_label_maps(jobs, plus_one, 1, "")
    assert (outcome.made, outcome.kept) == (1, 0)
    for problem, words in zip(
        outcome.problems, ("holds 101", "cannot be read", "is 8 x 7", "no such file"), strict=True
    ):
        assert words in problem
    assert all(str(job.source) in problem for job, problem in zip(jobs, outcome.problems, strict=False))
    assert [path.name for path in jobs[0].target.parent.iterdir()] == ["4.png"]


def test_nothing_is_left_of_a_failure_to_write(jobs, monkeypatch):
    def full(self, file, format):
        file.write(b"half a file")
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        make_label_map(jobs[0], plus_one)
    assert list(jobs[0].target.parent.iterdir()) == []


def test_what_is_made(jobs):
    job = jobs[0]
    assert not is_made(job)
    make_label_map(job, plus_one)
    assert is_made(job) and is_made(job._replace(image=None))

    whole = job.target.read_bytes()
    for damaged in (whole[:-1], b"", b"short"):
        job.target.write_bytes(damaged)
        assert not is_made(job)
    Image.new("L", (4, 6)).save(job.target)
    assert not is_made(job) and is_made(job._replace(image=None))

    job.target.write_bytes(whole)
    os.utime(job.source, (job.target.stat().st_mtime + 10,) * 2)  # a newer annotation
    assert not is_made(job)


def test_the_program(jobs, capsys):
    for i in range(6, 18):
        (jobs[0].source.parent / f"{i}.png").write_text("broken")
        jobs.append(Job(jobs[0].source.parent / f"{i}.png", None, jobs[0].target.with_name(f"{i}.png")))

    def find():
        return {"train": jobs[:5], "val": jobs[5:]}

    assert run("", find, plus_one, {"train": 5, "val": 2000}, ["--workers", "1"]) == 1
    out, err = capsys.readouterr()
    assert "train: 5 label maps made, 0 were there already\n" in out and "train: warning" not in err
    assert "there are 12 annotations, and 2000 in the published dataset" in err
    assert "15.png: cannot be read" in err and "16.png" not in err and "and 2 more failed" in err
    assert "val: warning: 12 annotations have no image, the first" in err
    assert run("", lambda: {"train": jobs[:5]}, plus_one, {"train": 5}, []) == 0


def test_options(capsys):
    with pytest.raises(SystemExit):
        run("", dict, plus_one, {}, ["--workers", "0"])
    assert "--workers is 0; it must be at least 1" in capsys.readouterr().err


def test_an_interruption_is_said(jobs, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("preparation.make_label_map", interrupted)
    with pytest.raises(SystemExit, match="run the same command again to continue"):
        run("", lambda: {"train": jobs}, plus_one, {"train": 5}, ["--workers", "1"])
