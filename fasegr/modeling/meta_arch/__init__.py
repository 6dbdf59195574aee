from fasegr.modeling.meta_arch.head import FASegHead
from fasegr.modeling.meta_arch.segmentor import FASeg

__all__ = ["FASeg", "FASegHead"]
