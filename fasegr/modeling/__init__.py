"""The model. Importing it registers the meta-architecture, the head and the backbones with detectron2's registries."""

from fasegr.modeling import backbone, meta_arch

__all__ = ["backbone", "meta_arch"]
