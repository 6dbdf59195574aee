"""What turns records of a dataset into samples of the segmentor."""

from fasegr.data.dataset_mappers.build import TRAINING_MAPPERS
from fasegr.data.dataset_mappers.segments import InstanceSegments, PanopticSegments, SegmentMapper
from fasegr.data.dataset_mappers.semantic import SemanticMapper

__all__ = ["TRAINING_MAPPERS", "InstanceSegments", "PanopticSegments", "SegmentMapper", "SemanticMapper"]
