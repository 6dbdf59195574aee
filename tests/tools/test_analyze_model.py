from pathlib import Path

import pytest

from tools import analyze_model as tool

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart/faseg_scenes.yaml")


def test_table_and_speed(capsys, monkeypatch):
    monkeypatch.setattr(tool, "tune_process", lambda **settings: None)  # of the process, which other tests share
    tool.main(["--config-file", QUICKSTART, "--size", "64", "96", "--device", "cpu", "--repeats", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("64 x 96")
    assert [line.split()[0] for line in lines[2:5]] == ["total", "backbone", "stem"]
    assert any(line.strip().startswith("semantic output") for line in lines)
    assert "median of 2" in lines[-1]


def test_config_keys_count(capsys):
    tool.main(["--config-file", QUICKSTART, "--no-speed", "--depth", "1", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "7"])
    one = capsys.readouterr().out
    tool.main(["--config-file", QUICKSTART, "--no-speed", "--depth", "1"])
    assert one != capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--batch", "0"], "--batch is 0"), (["--size", "0", "5"], "--size is 0 5"), (["SOLVER.MAX_ITR", "1"], "MAX_ITR")],
)
def test_what_cannot_be_done_is_one_message(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--config-file", QUICKSTART, *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
