from fasegr.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder, PixelDecoderOutput

__all__ = ["MSDeformAttnPixelDecoder", "PixelDecoderOutput"]
