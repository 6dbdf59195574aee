import csv
import io
import statistics

from PIL import Image

from tests.tools.ablation.study import TABLE, cells, finish
from tools.ablation.report import as_csv, as_markdown, summarize, write_report
from tools.ablation.runs import plan, resolve_base
from tools.ablation.tables import TABLES


def test_mean_and_deviation(tmp_path):
    planned = cells(tmp_path, (1, 2, 3))
    row = planned[0].row
    assert summarize(planned, TABLE, row) is None
    values = [40.0, 43.0, 41.0]
    finish(planned[0].run, values[0])
    assert str(summarize(planned, TABLE, row)) == "40.00"  # of one run there is no deviation
    finish(planned[2].run, values[1])
    finish(planned[4].run, values[2])
    result = summarize(planned, TABLE, row)
    assert (result.mean, result.deviation) == (statistics.fmean(values), statistics.stdev(values))
    assert str(result) == "41.33 ± 1.53"


def test_a_line_for_each_run(tmp_path):
    planned = cells(tmp_path)
    finish(planned[0].run, 40.0)
    lines = list(csv.DictReader(io.StringIO(as_csv(planned, TABLE))))
    assert [(line["row"], line["seed"], line["mIoU"]) for line in lines] == [
        ("learnable", "1", "40.0000"),
        ("dfpq", "1", ""),
        ("learnable", "2", ""),
        ("dfpq", "2", ""),
    ]
    assert lines[0]["paper"] == "46.9"
    assert lines[0]["folder"] == str(planned[0].run.folder)


def test_the_papers_layout(tmp_path):
    planned = cells(tmp_path)
    for cell, value in zip(planned, (40.0, 41.0, 42.0, 43.0), strict=True):
        finish(cell.run, value)
    assert as_markdown(planned, TABLE, "scenes").splitlines() == [
        "| Method | mIoU on scenes (%) | runs | paper, ADE20K |",
        "| --- | --- | --- | --- |",
        "| Learnable positional queries | 41.00 ± 1.41 | 2 | 46.9 |",
        "| DFPQ | 42.00 ± 1.41 | 2 | 48.3 |",
    ]


def test_rows_that_share_a_line(tmp_path):
    table = TABLES["3"]
    planned = plan([(table, table.rows)], [1], resolve_base("scenes", None), tmp_path)
    finish(planned[0].run, 40.0)
    finish(planned[3].run, 41.0)
    lines = as_markdown(planned, table, "scenes").splitlines()
    assert lines[0].split(" | ")[1] == "Mask2Former, mIoU on scenes (%)"
    assert lines[2] == "| Sinusoidal | 40.00 | 1 | 47.2 | 41.00 | 1 | 46.9 |"
    assert lines[4] == "| Conditional |  | 0 | 47.3 |  | 0 | 48.3 |"


def test_table_4_has_cityscapes_too(tmp_path):
    table = TABLES["4"]
    planned = plan([(table, table.rows)], [1], resolve_base("scenes", None), tmp_path)
    assert as_markdown(planned, table, "scenes").splitlines()[3] == "| ✓ |  |  | 0 | 47.7 | 80.0 |"


def test_files(tmp_path):
    planned = cells(tmp_path)
    assert [path.name for path in write_report(planned, TABLE, tmp_path / "a", "scenes")] == [
        "results.csv",
        "results.md",
    ]
    for cell in planned[:3]:
        finish(cell.run, 40.0 + cell.run.identity["SEED"])
    paths = write_report(planned, TABLE, tmp_path / "a", "scenes")
    with Image.open(paths[2]) as picture:
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").tobytes())) > 10
