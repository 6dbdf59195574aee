from fasegr.modeling.pixel_decoder.pixel_decoder import MSDeformAttnPixelDecoder, PixelDecoderOutput

__all__ = ["MSDeformAttnPixelDecoder", "PixelDecoderOutput"]
