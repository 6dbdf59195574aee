import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fasegr.evaluation import SemSegEvaluator
from fasegr.evaluation.report import compare_reports, read_report, write_comparison
from fasegr.visualization.report_page import write_report_page
from tests.evaluation.test_sem_seg import Case, register
from tests.evaluation.tiny_coco import TinyCoco


def evaluate(case: Case, folder: Path, outputs=None, **options) -> tuple[dict, dict]:
    """Scores, and the report that was written."""
    evaluator = SemSegEvaluator(case.name, output_dir=folder, report={"weights": "model.pth"}, **options)
    evaluator.process(case.inputs(), case.scores() if outputs is None else outputs)
    scores = evaluator.evaluate()["sem_seg"]
    return scores, read_report(folder)


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path / "data", images=8)


def test_a_report_has_the_scores_of_the_evaluation(case, tmp_path):
    scores, report = evaluate(case, tmp_path / "out")
    for name in ("mIoU", "fwIoU", "mACC", "pACC", "BoundaryIoU"):
        value, low, high = report["scores"][name]
        assert value == pytest.approx(scores[name], abs=1e-9) and low < value < high
    for row in report["classes"]:
        for metric in ("IoU", "ACC", "BoundaryIoU"):
            assert row[metric][0] == pytest.approx(scores[f"{metric}-{row['name']}"], abs=1e-9)
    assert report["num_images"] == 8 and report["weights"] == "model.pth" and report["dataset"] == case.name


def test_scores_of_an_image_are_those_of_a_dataset_of_it(case, tmp_path):
    _, report = evaluate(case, tmp_path / "out")
    assert [row["file_name"] for row in report["images"]] == case.files
    for i in (0, 5):
        one = SemSegEvaluator(case.name)
        one.process(case.inputs(slice(i, i + 1)), case.labels(slice(i, i + 1)))
        alone, row = one.evaluate()["sem_seg"], report["images"][i]
        assert {name: row[name] for name in ("mIoU", "pACC", "BoundaryIoU")} == pytest.approx(
            {name: alone[name] for name in ("mIoU", "pACC", "BoundaryIoU")}
        )
        assert row["IoU"] == pytest.approx(
            {str(c): alone[f"IoU-class {c}"] for c in range(5) if not math.isnan(alone[f"IoU-class {c}"])}
        )
    order = np.argsort([row["mIoU"] for row in report["images"]])
    assert report["worst"] == order[:6].tolist()


def test_the_csv_has_a_line_for_each_image(case, tmp_path):
    _, report = evaluate(case, tmp_path / "out")
    with open(tmp_path / "out" / "report" / "images.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == case.files
    for row, image in zip(rows, report["images"], strict=True):
        assert float(row["mIoU"]) == pytest.approx(image["mIoU"], abs=0.005)
        assert (row["IoU-class 2"] == "") == ("2" not in image["IoU"])


def test_parts_add_up_to_the_whole_and_confusions_are_in_order(case, tmp_path):
    _, report = evaluate(case, tmp_path / "out")
    confusion = np.array(report["confusion"])
    pixels = sum((truth < 255).sum() for truth in case.truths)
    assert confusion.sum() == pixels
    for parts in ("by_size", "by_distance"):
        assert sum(row["pixels"] for row in report[parts]) == pixels
    assert sum(row["pixels"] for row in report["calibration"]) == pixels
    largest = report["largest_confusions"]
    wrong = sorted((confusion[i, j] for i in range(5) for j in range(5) if i != j), reverse=True)
    assert [row["pixels"] for row in largest] == wrong[:10]
    first = largest[0]
    truth, predicted = (case.class_names.index(first[key]) for key in ("truth", "predicted"))
    assert confusion[truth, predicted] == first["pixels"]
    assert first["share_of_class"] == pytest.approx(100 * first["pixels"] / confusion[truth].sum())
    # nearer to a boundary the shifted prediction is wrong more often
    assert report["by_distance"][0]["pACC"][0] < report["by_distance"][2]["pACC"][0]


def test_labels_only_no_boundary_and_perfect(case, tmp_path):
    perfect = [{"sem_seg_labels": torch.from_numpy(np.where(t == 255, 0, t).astype(np.int64))} for t in case.truths]
    _, report = evaluate(case, tmp_path / "out", perfect, boundary=False)
    assert report["calibration"] is None and "ECE" not in report["scores"] and "BoundaryIoU" not in report["scores"]
    assert report["scores"]["mIoU"] == [100, 100, 100] and report["largest_confusions"] == []
    assert "confidence_map" not in report["images"][report["worst"][0]]


def test_a_class_without_pixels_an_image_without_truth_and_unicode(tmp_path):
    truths = [np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8), np.zeros((20, 20), np.uint8)]
    truths[0][:, 10:] = 1
    case = Case.__new__(Case)
    case.name, case.class_names = "test_report_unicode", ["空", "ciel, «bleu»", "nichts"]
    case.files = register(case.name, tmp_path / "größe", truths, case.class_names)
    outputs = [{"sem_seg_labels": torch.zeros(20, 20, dtype=torch.uint8)} for _ in truths]
    _, report = evaluate(case, tmp_path / "out", outputs)
    assert report["classes"][2]["IoU"] == [None, None, None] and report["classes"][1]["IoU"] == [0, None, None]
    assert report["images"][1]["mIoU"] is None and report["images"][1]["IoU"] == {}
    assert 1 not in report["worst"]
    header = (tmp_path / "out/report/images.csv").read_text(encoding="utf-8").splitlines()[0]
    assert '"IoU-ciel, «bleu»"' in header and "größe" in report["images"][0]["file_name"]


def test_two_processes_write_the_report_of_one(tmp_path, two_processes):
    case = TinyCoco(tmp_path)
    evaluator = SemSegEvaluator(case.panoptic, distributed=False, output_dir=tmp_path / "out", report={})
    evaluator.process(case.inputs(), case.semantic_outputs())
    evaluator.evaluate()
    one, two = read_report(tmp_path / "out"), read_report(two_processes.folder)
    assert [Path(row["file_name"]).name for row in two["images"]] == [f"{i}.jpg" for i in range(4)]
    for key in ("scores", "classes", "confusion", "by_size", "by_distance", "calibration"):
        assert one[key] == two[key], key


def test_ground_truth_that_only_the_dataset_reads(tmp_path):
    """Objects of a COCO file: the report does not name a file that means something else."""
    from fasegr.d2 import DatasetCatalog, MetadataCatalog

    case = TinyCoco(tmp_path)
    records = [
        record | {"sem_seg_objects": "instances.json", "background": 0, "sem_seg_file_name": None}
        for record in DatasetCatalog.get(case.instances)
    ]
    DatasetCatalog.register("test_report_objects", lambda: records)
    MetadataCatalog.get("test_report_objects").set(stuff_classes=["cat", "dog"], evaluator_type="sem_seg")
    evaluator = SemSegEvaluator("test_report_objects", output_dir=tmp_path / "out", report={"weights": ""})
    shapes = [(record["height"], record["width"]) for record in records]
    outputs = [{"sem_seg_labels": torch.zeros(shape, dtype=torch.uint8)} for shape in shapes]
    evaluator.process([{"file_name": record["file_name"]} for record in records], outputs)
    evaluator.evaluate()
    report = read_report(tmp_path / "out")
    assert {row["truth"] for row in report["images"]} == {None}
    page = write_report_page(tmp_path / "out" / "report").read_text(encoding="utf-8")
    assert "No pictures" not in page and "errors in red" in page


def test_without_ground_truth_there_is_no_report(tmp_path, caplog):
    case = Case(tmp_path / "data", images=1)
    record = {"file_name": case.files[0]}
    from fasegr.d2 import DatasetCatalog, MetadataCatalog

    DatasetCatalog.register("test_report_no_truth", lambda: [record])
    MetadataCatalog.get("test_report_no_truth").set(stuff_classes=case.class_names)
    evaluator = SemSegEvaluator("test_report_no_truth", output_dir=tmp_path / "out", report={})
    evaluator.process([record], case.labels())
    assert evaluator.evaluate() == {}
    assert "no report" in caplog.text and not (tmp_path / "out" / "report").exists()
    assert (tmp_path / "out" / "labels").is_dir()


# comparison


@pytest.fixture
def pair(case, tmp_path):
    """Reports of two models, of which the second is better at class 1 on every image and the same at the others."""
    evaluate(case, tmp_path / "a", case.labels())
    better = [np.where(truth == 1, 1, p) for truth, p in zip(case.truths, case.predictions, strict=True)]
    evaluate(case, tmp_path / "b", [{"sem_seg_labels": torch.from_numpy(p.astype(np.int64))} for p in better])
    return read_report(tmp_path / "a"), read_report(tmp_path / "b" / "report" / "report.json")


def test_a_comparison_of_two_models(pair, tmp_path):
    first, second = pair
    found = compare_reports(first, second, ["A", "B"])
    for i, row in enumerate(found["classes"]):
        ious = first["classes"][i]["IoU"][0], second["classes"][i]["IoU"][0]
        assert row["IoU"] == list(ious) and row["difference"][0] == pytest.approx(ious[1] - ious[0])
    value, low, high = found["difference"]
    assert value == pytest.approx(second["scores"]["mIoU"][0] - first["scores"]["mIoU"][0])
    assert 0 < low < value < high and found["p"] < 0.02
    assert found["classes"][1]["outcome"] == "gained" and found["better"] == 8 and found["worse"] == 0
    changes = [b["mIoU"] - a["mIoU"] for a, b in zip(first["images"], second["images"], strict=True)]
    assert found["changed_most"]["better"] == np.argsort(changes)[::-1][:4].tolist()
    assert all(Path(path).is_file() for path in found["images"][0]["predictions"])
    write_comparison(found, tmp_path / "c")
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["names"] == ["A", "B"]
    assert len((tmp_path / "c" / "comparison.csv").read_text().splitlines()) == 9


def test_the_other_way_round_the_signs_change(pair):
    first, second = pair
    forth, back = compare_reports(first, second, ["A", "B"]), compare_reports(second, first, ["B", "A"])
    assert back["difference"][0] == pytest.approx(-forth["difference"][0])
    assert back["classes"][1]["outcome"] == "lost" and back["p"] == pytest.approx(forth["p"], abs=0.01)


def test_a_model_against_itself(pair):
    found = compare_reports(pair[0], pair[0], ["A", "A"])
    assert found["difference"] == [0, 0, 0] and found["p"] == 1 and found["better"] == found["worse"] == 0
    assert {row["outcome"] for row in found["classes"]} == {"not told apart"}


def test_reports_in_another_order_and_from_another_folder_are_paired_by_name(pair):
    first, second = pair
    moved = [{**row, "file_name": row["file_name"].replace("/images/", "/elsewhere/")} for row in second["images"]]
    second = second | {"images": moved[::-1]}
    assert compare_reports(first, second, ["A", "B"])["difference"] == compare_reports(*pair, ["A", "B"])["difference"]


def test_what_cannot_be_compared(pair, tmp_path):
    first, second = pair
    with pytest.raises(ValueError, match=r"lacks 1 of the 8 images.*0.jpg"):
        compare_reports(first, second | {"images": second["images"][1:]}, ["A", "B"])
    classes = [second["classes"][0] | {"name": "other"}, *second["classes"][1:]]
    with pytest.raises(ValueError, match="class 0 is 'class 0' and 'other'"):
        compare_reports(first, second | {"classes": classes}, ["A", "B"])
    row = second["images"][3]
    changed = [row["confusion"][0], row["confusion"][1], row["confusion"][2] + 1, *row["confusion"][3:]]
    images = [*second["images"][:3], row | {"confusion": changed}, *second["images"][4:]]
    with pytest.raises(ValueError, match=r"3.jpg.*ground truth is not the same"):
        compare_reports(first, second | {"images": images}, ["A", "B"])


def test_files_that_are_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*TEST.REPORT True"):
        read_report(tmp_path / "nowhere")
    for text, message in (("{", "JSON"), ("[]", "no report"), ('{"format": "other"}', "'other'")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_report(tmp_path / "x.json")


def test_a_report_moves_with_its_folder(case, tmp_path):
    _, report = evaluate(case, tmp_path / "out")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    report = read_report(tmp_path / "moved")
    assert (Path(report["path"]).parent / report["images"][0]["prediction"]).is_file()
