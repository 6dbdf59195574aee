"""How the demo's options draw a result, for images and videos."""

from __future__ import annotations

from typing import Any, NamedTuple

from PIL import Image

from fasegr import Predictor
from fasegr.evaluation.leave_out import leave_out
from fasegr.inference.predictor import ImageLike

__all__ = ["Drawing"]


class Drawing(NamedTuple):
    """alpha: of the colours. min_score: of instances that are drawn. confidence, min_area: see `leave_out`."""

    alpha: float = 0.5
    min_score: float = 0.5
    confidence: float = 0
    min_area: int = 0

    def chosen(self, result: dict[str, Any]) -> dict[str, Any]:
        """The result without what the options leave out."""
        if self.confidence > 0 or self.min_area > 0:
            return leave_out(result, self.confidence, self.min_area)
        return result

    def draw(self, predictor: Predictor, image: ImageLike, result: dict[str, Any], *, legend: bool) -> Image.Image:
        return predictor.draw(image, result, self.alpha, self.min_score, legend=legend)
