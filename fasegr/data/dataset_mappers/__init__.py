"""What turns the records of a dataset into samples for the segmentor."""

from fasegr.data.dataset_mappers.build import TRAINING_MAPPERS, build_mapper
from fasegr.data.dataset_mappers.dataset_mapper import InferenceMapper
from fasegr.data.dataset_mappers.instance import InstanceMapper
from fasegr.data.dataset_mappers.panoptic import PanopticMapper
from fasegr.data.dataset_mappers.semantic import SemanticMapper

__all__ = [
    "TRAINING_MAPPERS",
    "InferenceMapper",
    "InstanceMapper",
    "PanopticMapper",
    "SemanticMapper",
    "build_mapper",
]
