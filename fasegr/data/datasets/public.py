"""Public datasets under the names that detectron2 has for them."""

from collections.abc import Callable

from fasegr.d2 import DatasetCatalog, MetadataCatalog
from fasegr.data.datasets.folder import ClassList, register_folder

__all__ = ["register_benchmark"]


def register_benchmark(
    name: str,
    load: Callable[[], list[dict]],
    classes: ClassList,
    submission_ids: list[int],
    evaluator_type: str = "sem_seg",
) -> None:
    """Adds a dataset as `register_folder` does; what is registered as `name` already, by detectron2 say, stays as it
    is, and is only given what it lacks of the colours and of `submission_ids`.

    submission_ids: for each class, the value that the benchmark's server wants in the files it is sent.
    """
    if name not in DatasetCatalog.list():
        register_folder(name, load, classes, evaluator_type=evaluator_type, submission_ids=submission_ids)
        return
    metadata = MetadataCatalog.get(name)
    if len(metadata.get("stuff_classes", ())) != len(classes.names):
        return  # another dataset of this name
    # Lists, in which Mask2Former sets the same colours: a catalog refuses to have a value changed.
    for key, value in (
        ("stuff_colors", [list(colour) for colour in classes.colours]),
        ("submission_ids", submission_ids),
    ):
        if metadata.get(key) is None:
            metadata.set(**{key: value})
