import json

import pytest

from benchmarks.compare import LESS_MEMORY, MORE_MEMORY, QUICKER, SLOWER, compare, main


def _result(seconds, memory=None, kind="inference"):
    case = {
        "kind": kind,
        "config": "c.yaml",
        "opts": [],
        "size": [8, 8],
        "batch": 1,
        "dtype": "float32",
        "device": "cpu",
        "allocator": "default",
    }
    rounds = [{"whole": value} for value in seconds]
    result = {"case": case, "seconds": {"ours": rounds}}
    if memory:
        result["memory"] = {"ours": {"whole": memory}}
    return {"machine": {"commit": "abc", "date": "today", "cpu": "a CPU"}, "results": [result]}


def _verdict(before, after, tolerance=0.1):
    (rows,) = compare(before, after, tolerance).values()
    return rows[0][-1]


STEADY = [1.0, 1.01, 0.99, 1.0]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (STEADY, STEADY, ""),
        (STEADY, [1.5, 1.51, 1.49], SLOWER),
        ([1.5, 1.51, 1.49], STEADY, QUICKER),
        (STEADY, [1.05, 1.05, 1.05], ""),  # within the tolerance
        ([0.5, 1.0, 3.0, 1.0], [0.9, 1.3, 2.0, 1.3], ""),  # the spreads overlap
    ],
)
def test_times(before, after, verdict):
    assert _verdict(_result(before), _result(after)) == verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [(100, 120, MORE_MEMORY), (120, 100, LESS_MEMORY), (100, 105, "")]
)
def test_memory(before, after, verdict):
    assert _verdict(_result(STEADY, before), _result(STEADY, after)) == verdict


def test_exits_with_one_if_something_is_slower(tmp_path, capsys):
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, seconds in zip(files, (STEADY, [2.0, 2.0, 2.0]), strict=True):
        file.write_text(json.dumps(_result(seconds)))
    main([str(files[0]), str(files[0])])
    with pytest.raises(SystemExit) as stopped:
        main([str(file) for file in files])
    assert stopped.value.code == 1
    assert "2.00" in capsys.readouterr().out


def test_nothing_in_common_is_an_error(tmp_path, capsys):
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, kind in zip(files, ("inference", "training"), strict=True):
        file.write_text(json.dumps(_result(STEADY, kind=kind)))
    with pytest.raises(SystemExit) as stopped:
        main([str(file) for file in files])
    assert stopped.value.code == 2
    assert "no case in common" in capsys.readouterr().err
