from fasegr.modeling.pixel_decoder.ops.ms_deform_attn import deformable_attention

__all__ = ["deformable_attention"]
