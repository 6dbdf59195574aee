"""The head: pixel decoder and transformer decoder, from backbone features to masks and their classes."""

from __future__ import annotations

from torch import Tensor, nn

from fasegr.d2 import SEM_SEG_HEADS_REGISTRY, ShapeSpec, configurable
from fasegr.modeling.mask_piloting import PilotQueries
from fasegr.modeling.pixel_decoder import MSDeformAttnPixelDecoder
from fasegr.modeling.transformer_decoder.decoder import MultiScaleMaskedTransformerDecoder, Prediction


@SEM_SEG_HEADS_REGISTRY.register()
class FASegHead(nn.Module):
    """pixel_decoder and transformer decoder (`predictor`, its name in released state dicts)."""

    _version = 2  # goes into state dicts: the released code renames parameters of lower versions when it loads them

    @configurable
    def __init__(self, pixel_decoder: MSDeformAttnPixelDecoder, predictor: MultiScaleMaskedTransformerDecoder):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        decoder = MultiScaleMaskedTransformerDecoder
        return {
            "pixel_decoder": MSDeformAttnPixelDecoder(**MSDeformAttnPixelDecoder.from_config(cfg, input_shape)),
            "predictor": decoder(**decoder.from_config(cfg, in_channels=cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM)),
        }

    def forward(self, features: dict[str, Tensor], pilot: PilotQueries | None = None) -> dict:
        """features: {name: (B, C, H/stride, W/stride)}. pilot: of training with piloted queries.

        Returns pred_logits (B, Q, K + 1), pred_masks (B, Q, H/4, W/4) and, in training only, aux_outputs: a list of
        such dicts, one for each earlier prediction, that of the learnable queries first. With `pilot` there is also
        piloted, a dict of the same from the piloted queries.
        """
        maps = self.pixel_decoder(features)
        if pilot is not None:
            own, piloted = self.predictor.forward_piloted(maps, pilot)
            return {**self._outputs(own), "piloted": self._outputs(piloted)}
        return self._outputs(self.predictor(maps))

    def _outputs(self, predictions: list[Prediction]) -> dict:
        *earlier, last = ({"pred_logits": p.class_logits, "pred_masks": p.mask_logits} for p in predictions)
        if self.training:
            last["aux_outputs"] = earlier
        return last
