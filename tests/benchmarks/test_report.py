import pytest

from benchmarks.report import aligned, attainable, readings, table, title

CASE = {
    "kind": "inference",
    "config": "/a/b/faseg_r50.yaml",
    "opts": [],
    "size": [512, 256],
    "batch": 2,
    "dtype": "float32",
    "device": "cpu",
    "allocator": "tuned",
}
RESULT = {
    "case": CASE,
    "names": {"ours": "fasegr", "peer": "other"},
    "seconds": {
        "ours": [{"whole": 0.010, "part": 0.004}, {"whole": 0.012, "part": 0.006}, {"whole": 0.011, "part": 0.005}],
        "peer": [{"whole": 0.040}, {"whole": 0.048}, {"whole": 0.022}],
    },
    "memory": {"ours": {"whole": 2**20, "part": 2**19}, "peer": {"whole": 4 * 2**20}},
    "work": {"whole/flops": 2_000_000, "whole/bytes": 1000, "part/flops": 10, "part/bytes": 1_000_000},
}
PEAKS = {"float32": {"flops": 1e9, "bytes": 1e9}}


def _cells(text, line):
    return [cell.strip() for cell in text.splitlines()[line].strip("|").split("|")]


def test_title():
    assert title(CASE) == "inference: faseg_r50, 512 x 256, batch 2, float32, cpu, tuned allocator"
    assert title(CASE | {"opts": ["A.B", "1"]}).endswith(", A.B 1")


def test_table_has_a_row_for_each_part():
    text = table(RESULT, PEAKS)
    assert dict(zip(_cells(text, 0), _cells(text, 2), strict=True)) == {
        "3 rounds": "whole",
        "fasegr ms": "11.0 (10.5..11.5)",
        "fasegr of roof": "18 %",  # 2 ms of 11
        "other ms": "40.0 (31.0..44.0)",
        "other of roof": "5 %",
        "ratio": "3.64 (3.00..4.00)",
        "fasegr MiB": "1",
        "other MiB": "4",
        "memory ratio": "0.25",
    }
    # the peer's cells are empty where it has no such part
    assert _cells(text, 3) == ["part", "5.0 (4.5..5.5)", "20 %", "", "", "", "0", "", ""]


def test_table_without_peer_roof_and_memory():
    text = table({"case": CASE, "seconds": {"ours": [{"whole": 2.0}]}}, {})
    assert _cells(text, 0) == ["1 rounds", "ours ms"]
    assert _cells(text, 2) == ["whole", "2000 (2000..2000)"]


def test_the_roof_is_the_longer_of_the_two_bounds():
    roof = PEAKS["float32"]
    assert attainable(RESULT["work"], "whole", roof) == pytest.approx(0.002)
    assert attainable(RESULT["work"], "part", roof) == pytest.approx(0.001)


def test_readings_by_part():
    assert readings(RESULT["seconds"], "peer") == {"whole": [0.040, 0.048, 0.022]}
    assert readings({}, "peer") == {}


def test_aligned_is_a_markdown_table():
    assert aligned([["part", "ms"], ["a", "10"]]) == "| part | ms |\n|------|---:|\n| a    | 10 |"


def test_what_other_programs_used_is_in_the_table():
    text = table(RESULT | {"others": [0.05, None, 1.25]}, PEAKS)
    assert _cells(text, -1)[:2] == ["other programs", "1.2 cores at most"]


def test_a_case_beside_busy_processes_has_a_title_of_its_own():
    assert title(CASE | {"beside": 2}).endswith(", beside 2")
