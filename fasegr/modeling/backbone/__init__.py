from fasegr.modeling.backbone.resnet import ResNet
from fasegr.modeling.backbone.swin import SwinTransformer
from fasegr.modeling.backbone.timm import TimmBackbone
from fasegr.modeling.backbone.vit import PlainViT

__all__ = ["PlainViT", "ResNet", "SwinTransformer", "TimmBackbone"]
