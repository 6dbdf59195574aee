import re

import numpy as np
import pytest
import torch
from PIL import Image

from fasegr.evaluation import SemSegEvaluator
from fasegr.evaluation.report import compare_reports, read_report
from fasegr.visualization import report_page
from fasegr.visualization.report_page import write_comparison_page, write_report_page
from tests.evaluation.test_sem_seg import Case

pytestmark = pytest.mark.slow

NAMES = ["<b>sky</b>", "a$b$c_d", "空", "hedge & wall", "lost"]


@pytest.fixture
def case(tmp_path):
    case = Case(tmp_path / "data", images=6)
    for file, truth in zip(case.files, case.truths, strict=True):
        path = tmp_path / "data" / "images"
        path.mkdir(exist_ok=True)
        Image.fromarray(np.full((*truth.shape, 3), 90, np.uint8)).save(file)
    return case


def evaluate(case, folder, outputs):
    evaluator = SemSegEvaluator(case.name, output_dir=folder, report={"weights": "w/model.pth"})
    evaluator.class_names = NAMES
    evaluator.process(case.inputs(), outputs)
    evaluator.evaluate()
    return folder / "report"


def is_self_contained(page: str) -> None:
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"url\((?!#|&quot;|data:)", page)


def test_the_page_of_an_evaluation(case, tmp_path):
    torch.manual_seed(0)
    folder = evaluate(case, tmp_path / "out", case.scores())
    page = write_report_page(folder).read_text(encoding="utf-8")
    report = read_report(folder)
    is_self_contained(page)
    assert "<b>sky" not in page and "&lt;b&gt;sky" in page and "a$b$c_d" in page and "空" in page
    assert f"{report['scores']['mIoU'][0]:.1f}" in page and "model.pth on " in page
    first = report["largest_confusions"][0]
    assert f"{first['share_of_class']:.1f} % of all" in page
    assert page.count("errors in red") == page.count("confidence: dark is unsure") == 6
    assert "Not measured" not in page


def test_pictures_that_are_gone_and_scores_that_were_not_returned_are_said(case, tmp_path, monkeypatch):
    marked, mark = [], report_page._marked
    monkeypatch.setattr(report_page, "_marked", lambda photo, marks: marked.extend(marks) or mark(photo, marks))
    folder = evaluate(case, tmp_path / "out", case.labels())
    report = read_report(folder)
    missing = report["images"][report["worst"][0]]["file_name"]
    (tmp_path / "data" / "images" / missing.rpartition("/")[2]).unlink()
    page = write_report_page(folder).read_text(encoding="utf-8")
    assert page.count("No pictures") == 1 and page.count("errors in red") == 5
    assert "SEMANTIC_OUTPUT scores" in page and "confidence: dark" not in page
    # errors are marked, and ignored pixels are none
    for (mask, _), index in zip(marked, [*report["worst"][1:], *report["median"]], strict=True):
        truth, prediction = case.truths[index], case.predictions[index]
        np.testing.assert_array_equal(mask, (truth != prediction) & (truth != 255))


def test_the_page_of_a_comparison(case, tmp_path):
    first = evaluate(case, tmp_path / "a", case.labels())
    better = [np.where(truth == 1, 1, p) for truth, p in zip(case.truths, case.predictions, strict=True)]
    second = evaluate(case, tmp_path / "b", [{"sem_seg_labels": torch.from_numpy(p.astype(int))} for p in better])
    comparison = compare_reports(read_report(first), read_report(second), ["<i>old</i>", "new"])
    page = write_comparison_page(comparison, tmp_path / "c").read_text(encoding="utf-8")
    is_self_contained(page)
    assert "new is better than &lt;i&gt;old" in page and "<i>old" not in page
    assert "Changed most, better with new" in page and "green: only new is right" in page
    same = compare_reports(read_report(first), read_report(first), ["A", "B"])
    page = write_comparison_page(same, tmp_path / "d").read_text(encoding="utf-8")
    assert "A and B cannot be told apart" in page and "Changed most" not in page
    comparison = compare_reports(read_report(second), read_report(first), ["new", "old"])
    assert "old is worse than new" in write_comparison_page(comparison, tmp_path / "e").read_text(encoding="utf-8")
