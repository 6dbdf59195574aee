"""Readers of what labelling tools export, one module each. `READERS` has them by the name of their format."""

from own_formats import coco, cvat, label_studio, labelme, voc, yolo

__all__ = ["READERS"]

READERS = {module.__name__.rpartition(".")[2]: module for module in (cvat, labelme, label_studio, voc, yolo, coco)}
