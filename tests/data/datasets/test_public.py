import pytest

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.folder import ClassList
from fasegr.data.datasets.public import register_benchmark

NAME = "test_benchmark"
CLASSES = ClassList(["sky", "road"], [(1, 2, 3), (4, 5, 6)])
pytestmark = pytest.mark.usefixtures("catalogs")


def test_new():
    register_benchmark(NAME, lambda: [1], CLASSES, [7, 8], "some_kind")
    meta = MetadataCatalog.get(NAME)
    assert DatasetCatalog.get(NAME) == [1]
    assert (meta.stuff_classes, meta.stuff_colors) == (CLASSES.names, CLASSES.colours)
    assert (meta.ignore_label, meta.evaluator_type, meta.submission_ids) == (255, "some_kind", [7, 8])


def test_what_is_registered_is_completed():
    """detectron2 knows neither the colours nor what the servers want."""
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(stuff_classes=["sky ", "road"], evaluator_type="theirs")
    for _ in range(2):
        register_benchmark(NAME, lambda: [1], CLASSES, [7, 8])
    meta = MetadataCatalog.get(NAME)
    assert DatasetCatalog.get(NAME) == []
    assert (meta.stuff_classes, meta.evaluator_type, meta.submission_ids) == (["sky ", "road"], "theirs", [7, 8])
    meta.set(stuff_colors=[[1, 2, 3], [4, 5, 6]])  # as Mask2Former does when it is imported; another value is an error


def test_what_is_registered_with_other_classes_is_not():
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(stuff_classes=["all"], stuff_colors=[(0, 0, 0)])
    register_benchmark(NAME, lambda: [1], CLASSES, [7, 8])
    assert MetadataCatalog.get(NAME).stuff_colors == [(0, 0, 0)]
    assert MetadataCatalog.get(NAME).get("submission_ids") is None
