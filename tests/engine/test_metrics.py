import json

import pytest

from fasegr.engine.metrics import MetricsFile, set_aside


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_plain_json_without_what_is_not_finite(tmp_path):
    file = MetricsFile(str(tmp_path), 0)
    file.write(19, {"total_loss": 1.5, "sem_seg/IoU-boat": float("nan")})
    file.write(39, {"total_loss": 1.25})
    file.close()
    assert read(tmp_path / "metrics.json") == [
        {"iteration": 19, "total_loss": 1.5},
        {"iteration": 39, "total_loss": 1.25},
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_resumed_run_drops_what_it_writes_again(tmp_path):
    file = MetricsFile(str(tmp_path), 0)
    for iteration in (19, 39, 59):
        file.write(iteration, {"total_loss": 1.0})
    file.close()
    with open(tmp_path / "metrics.json", "a") as torn:
        torn.write('{"iteration": 79, "total_l')  # the machine went down

    file = MetricsFile(str(tmp_path), 40)
    assert file.last == {"iteration", "total_loss"}, "of iteration 39"
    file.write(59, {"total_loss": 2.0})
    file.close()
    assert [(line["iteration"], line["total_loss"]) for line in read(tmp_path / "metrics.json")] == [
        (19, 1.0),
        (39, 1.0),
        (59, 2.0),
    ]


@pytest.mark.parametrize(
    "content", [b'{\n  "a": [1, 2]\n}\n', b'["\xff"]', b"[" * 100_000, b'{"iteration": "x"}\n{}\n', b"\0"]
)
def test_a_file_of_something_else_is_kept_under_another_name(tmp_path, content, caplog):
    whole = b'{"iteration": 3, "total_loss": 1.0}\n'
    (tmp_path / "metrics.json").write_bytes(content + b"\n" + whole)
    MetricsFile(str(tmp_path), 9).close()
    assert (tmp_path / "metrics.json").read_bytes() == whole
    assert (tmp_path / "metrics.1.json").read_bytes() == content + b"\n" + whole
    assert "metrics.1.json has them" in caplog.text


def test_set_aside_numbers_files_together(tmp_path):
    assert set_aside(str(tmp_path), ("metrics.json", "last_checkpoint")) is None
    for n in (1, 2):
        (tmp_path / "metrics.json").write_text(str(n))
        if n == 2:
            (tmp_path / "last_checkpoint").write_text(str(n))
        assert set_aside(str(tmp_path), ("metrics.json", "last_checkpoint")) == n
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "metrics.1.json": "1",
        "metrics.2.json": "2",
        "last_checkpoint.2": "2",
    }
