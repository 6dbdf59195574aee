"""Operations that have more than one form: the plain one first, then the faster ones, then the choice between them.

Model files call the functions below and know nothing about devices, types or processors. `switches.py` names the faster
forms and turns them off.
"""

from fasegr.modeling.ops.autocast import for_products, scaled_for_products
from fasegr.modeling.ops.class_argmax import class_argmax
from fasegr.modeling.ops.convolution import conv2d
from fasegr.modeling.ops.deformable_attention import deformable_attention
from fasegr.modeling.ops.kept import Kept, KeptWeights
from fasegr.modeling.ops.memory_format import channels_last
from fasegr.modeling.ops.padding import pad_to_multiple, round_up
from fasegr.modeling.ops.point_sample import point_samplers
from fasegr.modeling.ops.row_column import row_column_sum
from fasegr.modeling.ops.sync_batch_norm import SyncBatchNorm
from fasegr.modeling.ops.tile_size import items_per_tile
from fasegr.modeling.ops.transfer import to_device

__all__ = [
    "Kept",
    "KeptWeights",
    "SyncBatchNorm",
    "channels_last",
    "class_argmax",
    "conv2d",
    "deformable_attention",
    "for_products",
    "items_per_tile",
    "pad_to_multiple",
    "point_samplers",
    "round_up",
    "row_column_sum",
    "scaled_for_products",
    "to_device",
]
