import json
import re
from pathlib import Path

import pytest

from tools.compare_recipes import main

CONFIGS = Path(__file__).parents[2] / "configs/camvid"
ROWS = ["--rows", str(CONFIGS / "faseg_r18_cpu.yaml"), str(CONFIGS / "rare_classes/crops.yaml")]


def write_run(folder, miou, pole, seconds=2.0):
    folder.mkdir(parents=True)
    lines = [{"iteration": 0, "time": seconds}, {"iteration": 1399, "sem_seg/mIoU": 1.0, "sem_seg/IoU-pole": 1.0}]
    lines.append({"iteration": 2799, "time": seconds, "sem_seg/mIoU": miou, "sem_seg/IoU-pole": pole})
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_table_of_finished_runs(tmp_path, capsys):
    for seed, (miou, pole) in enumerate([(50.0, 10.0), (52.0, 14.0)], start=1):
        write_run(tmp_path / f"faseg_r18_cpu/seed{seed}", miou, pole)
        write_run(tmp_path / f"crops/seed{seed}", miou - 1, pole + 6, seconds=2.5)
    command = [*ROWS, "--classes", "pole", "--seeds", "3", "--output", str(tmp_path), "--report"]
    assert main(command) == 0
    table = (tmp_path / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "| faseg_r18_cpu | 2 | 12.00 | 51.00 | 2.00 |" in table
    assert "| crops | 2 | 18.00 (+6.00 ± 2.83) | 50.00 (-1.00 ± 1.41) | 2.50 (+0.50 ± 0.00) |" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "tram"], "--classes: tram unknown; .*has sky, building"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--", "DATASETS.TEST", "()"], "expected one dataset"),
    ],
)
def test_mistakes(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main([*ROWS, "--output", str(tmp_path), "--report", *options])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_runs_of_another_config_are_not_mixed_in(tmp_path, capsys):
    write_run(tmp_path / "crops/seed1", 50.0, 10.0)
    (tmp_path / "crops/seed1/run.json").write_text(json.dumps({"identity": {"SOLVER.MAX_ITER": 7}}))
    with pytest.raises(SystemExit):
        main([*ROWS, "--seeds", "1", "--output", str(tmp_path), "--report"])
    assert "has a run with another" in capsys.readouterr().err
