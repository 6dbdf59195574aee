from fasegr.modeling.backbone.resnet import ResNet
from fasegr.modeling.backbone.swin import SwinTransformer
from fasegr.modeling.backbone.timm import TimmBackbone

__all__ = ["ResNet", "SwinTransformer", "TimmBackbone"]
