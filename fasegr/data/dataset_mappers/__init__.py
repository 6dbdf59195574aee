"""What turns records of a dataset into samples of the segmentor."""

from fasegr.data.dataset_mappers.semantic import SemanticMapper

__all__ = ["SemanticMapper"]
