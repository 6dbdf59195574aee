import csv
import shlex
from pathlib import Path

import pytest

from tests.engine.tiny_training import write_dataset
from tests.tools.ablation.study import TRAINER
from tools import run_ablation as tool
from tools.ablation import execution

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = ["SOLVER.MAX_ITER", "4"]


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Two rows of Table 5 with one seed, trained by nobody."""
    (tmp_path / "trainer.py").write_text(TRAINER)
    monkeypatch.setattr(execution, "TRAINER", tmp_path / "trainer.py")
    return [
        *("--table", "5", "--dataset", "scenes", "--rows", "learnable", "dfpq", "--seeds", "1"),
        *("--output", str(tmp_path / "out"), "--gpus-per-run", "0"),
    ]


def test_commands_alone(arguments, tmp_path, capsys):
    tool.main([*arguments, "--dry-run", *STEPS])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    words = shlex.split(lines[0])
    assert words[words.index("OUTPUT_DIR") + 1] == str(tmp_path / "out/table5/learnable/seed1")
    assert not (tmp_path / "out").exists()


def test_runs_and_tables(arguments, tmp_path, capsys):
    tool.main([*arguments, *STEPS])
    assert "| DFPQ | 52.00 | 1 | 48.3 |" in capsys.readouterr().out
    folder = tmp_path / "out/table5"
    assert {"results.csv", "results.md", "results.png"} <= {path.name for path in folder.iterdir()}
    with open(folder / "results.csv") as file:
        assert [line["mIoU"] for line in csv.DictReader(file)] == ["51.0000", "52.0000"]
    (tmp_path / "trainer.py").unlink()
    tool.main([*arguments, "--report", *STEPS])  # nothing is left to run, and nothing is run
    tool.main([*arguments, *STEPS])


def test_a_failed_run_ends_in_code_1_with_its_log(arguments, tmp_path, capsys):
    (tmp_path / "out/table5/learnable").mkdir(parents=True)
    (tmp_path / "out/table5/learnable/fail").touch()
    with pytest.raises(SystemExit) as stopped:
        tool.main([*arguments, *STEPS])
    assert stopped.value.code == 1
    out, err = capsys.readouterr()
    assert "1 of 2 runs failed" in err
    assert str(tmp_path / "out/table5/learnable/seed1/console.txt") in err
    assert "| DFPQ | 52.00 | 1 | 48.3 |" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--seeds", "0"], "--seeds is 0"),
        (["--gpus-per-run", "-1"], "--gpus-per-run is -1"),
        (["--rows", "nobody"], "--rows: nobody unknown; the rows are dfpq, dynamic_anchor"),
        (["--rows", "nobody.yaml"], "nobody.yaml is neither a row"),
        (["SOLVER.MAX_ITER"], "'SOLVER.MAX_ITER' has no value"),
        (["--", "SOLVER.MAX_ITR", "4"], "MAX_ITR"),
        (["--dataset", "nobody"], "nobody has no config of its own"),
        (["--table", "9"], "'9'"),
    ],
)
def test_what_cannot_be_done_is_one_message(arguments, changes, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        tool.main([*arguments, *changes])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_real_run(tmp_path, capsys, monkeypatch):
    """A row of one's own, of two iterations, on a dataset and base of one's own."""
    write_dataset(tmp_path / "data", size=64)
    base = tmp_path / "base.yaml"
    base.write_text(
        f"_BASE_: {ROOT / 'configs/quickstart/faseg_scenes.yaml'}\n"
        f"DATASETS: {{FOLDER: {{NAME: tiny_study, ROOT: {tmp_path / 'data'}, CLASSES: data/classes.txt}},"
        " TRAIN: [tiny_study_train], TEST: [tiny_study_val]}\n"
        "MODEL: {SEM_SEG_HEAD: {NUM_CLASSES: 2}}\n"
        "SOLVER: {MAX_ITER: 2, IMS_PER_BATCH: 2, WARMUP_ITERS: 0}\n"
        "INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, CROP: {SIZE: [64, 64]}, SIZE_DIVISIBILITY: 64}\n"
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"_BASE_: {ROOT / 'configs/ade20k/semantic-segmentation/faseg_r50.yaml'}\n"
                    "MODEL: {FASEG: {MASK_THRESHOLD: 0.25}}\n")  # fmt: skip
    tool.main(
        [
            *("--table", "4", "--base-config", str(base), "--rows", str(mine), "--seeds", "1"),
            *("--gpus-per-run", "0", "--output", str(tmp_path / "out"), "--threads", "1"),
        ]
    )
    run = tmp_path / "out/table4/mine/seed1"
    assert (run / "model_final.pth").exists()
    assert "MASK_THRESHOLD: 0.25" in (run / "config.yaml").read_text()
    with open(tmp_path / "out/table4/results.csv") as file:
        (line,) = csv.DictReader(file)
    assert 0 <= float(line["mIoU"]) <= 100
