"""INPUT.AUGMENTATIONS: transforms of torchvision.transforms.v2, named in a config, on an image and its masks alike.

INPUT:
  AUGMENTATIONS:
    - RandomRotation: {degrees: 10}
    - RandomApply: {p: 0.3, transforms: [{GaussianBlur: {kernel_size: 5}}]}
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from fasegr.data.transform import PAD_VALUE

__all__ = ["TorchvisionTransforms"]

KEY = "INPUT.AUGMENTATIONS"
_TRIES = 4  # of a check, since many transforms do something only now and then


class TorchvisionTransforms:
    """The transforms in order, after the resize, crop, flip, colours and padding of the other INPUT keys.

    Masks are resampled by the nearest pixel, and what comes into the picture from outside belongs to no mask: it is
    ignored where labels are, as 255 in a label map is. In the image it is grey, whatever `fill` says of masks.

    specs: one {name: arguments} for each; a transform of `transforms` takes such a list. sizes: (height, width) of an
    image that they are tried on. Raises ValueError, naming the entry, for a name that torchvision does not have, for
    arguments that it does not take, and for what cannot be done to an image and masks together.
    """

    def __init__(self, specs: Sequence[dict[str, dict[str, Any]]], size: tuple[int, int] = (512, 512)):
        self.transforms = [_build(spec, f"{KEY}[{i}]") for i, spec in enumerate(specs)]
        for i, (transform, spec) in enumerate(zip(self.transforms, specs, strict=True)):
            size = _try(transform, size, f"{KEY}[{i}] {next(iter(spec))}")

    def __call__(self, rng: np.random.Generator, image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """image: uint8 (3, H, W). masks: bool (K, H, W). Both of the same new size. All randomness comes from `rng`."""
        with _torch_seed(int(rng.integers(2**63))):
            return _apply(self.transforms, image, masks)


def _apply(transforms: Sequence[v2.Transform], image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Masks that do not overlap, all but those of objects, are numbers in one map: a transform then has one to do.
    count = len(masks)
    together = masks.sum(0, dtype=np.int32).max(initial=0) <= 1
    if together:
        segments = np.zeros(masks.shape[1:], np.uint8 if count < 256 else np.int32)
        for number, mask in enumerate(masks, start=1):
            segments[mask] = number
    else:
        segments = masks.astype(np.uint8)
    picture, target = tv_tensors.Image(torch.from_numpy(image)), tv_tensors.Mask(torch.from_numpy(segments))
    for transform in transforms:
        picture, target = transform(picture, target)
    if not (
        isinstance(picture, torch.Tensor)
        and isinstance(target, torch.Tensor)
        and picture.dtype == torch.uint8
        and picture.ndim == 3
        and len(picture) == 3
        and picture.shape[1:] == target.shape[-2:]
        and target.ndim == segments.ndim
        and min(picture.shape) > 0
    ):
        found = [
            f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            for value in (picture, target)
        ]
        raise ValueError(
            f"{KEY}: after {', '.join(type(transform).__name__ for transform in transforms)} there are {found[0]} and "
            f"{found[1]}; expected an image of torch.uint8 (3, height, width) and masks of its size"
        )
    image, segments = np.ascontiguousarray(picture.numpy()), target.numpy()
    if together:
        return image, segments == np.arange(1, count + 1, dtype=segments.dtype)[:, None, None]
    return image, segments.astype(bool)


@contextmanager
def _torch_seed(seed: int):
    """torch's generator of the CPU starts at `seed` in the block, and goes on afterwards as if nothing had been drawn.
    That of a GPU, which torch.manual_seed changes too, is the training's."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _build(spec: Any, where: str) -> v2.Transform:
    if not isinstance(spec, dict) or len(spec) != 1:
        raise ValueError(f"{where} is {spec!r}; expected one transform as {{name: {{argument: value}}}}")
    ((name, arguments),) = spec.items()
    transform = getattr(v2, name, None) if isinstance(name, str) and not name.startswith("_") else None
    if not (inspect.isclass(transform) and issubclass(transform, v2.Transform) and transform is not v2.Transform):
        raise ValueError(
            f"{where} is {name!r}; torchvision.transforms.v2 has no transform of this name, as RandomRotation or "
            "GaussianBlur (https://docs.pytorch.org/vision/stable/transforms.html)"
        )
    where = f"{where} {name}"
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise ValueError(f"{where} has {arguments!r}; expected its arguments as {{argument: value}}")
    arguments = dict(arguments)
    parameters = inspect.signature(transform).parameters
    unknown = sorted(set(map(str, arguments)) - set(parameters))
    if unknown:
        raise ValueError(f"{where} has no argument {', '.join(unknown)}; it takes {', '.join(parameters)}")
    if isinstance(arguments.get("transforms"), list):
        inner = enumerate(arguments["transforms"])
        arguments["transforms"] = [_build(item, f"{where}.transforms[{i}]") for i, item in inner]
    try:
        if isinstance(arguments.get("interpolation"), str):
            arguments["interpolation"] = InterpolationMode(arguments["interpolation"])
        if "fill" in parameters:
            arguments["fill"] = {tv_tensors.Image: arguments.get("fill", PAD_VALUE), tv_tensors.Mask: 0}
        return transform(**arguments)
    except Exception as error:  # whatever a transform says of its arguments
        raise ValueError(f"{where}: {str(error) or type(error).__name__}") from error


def _try(transform: v2.Transform, size: tuple[int, int], where: str) -> tuple[int, int]:
    """Raises ValueError if the transform cannot be applied to an image of `size` with masks. Returns the new size."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    masks = np.zeros((2, *size), bool)
    masks[0, : size[0] // 2] = masks[1, size[0] // 2 :] = True
    for attempt in range(_TRIES):
        try:
            with _torch_seed(attempt):
                changed, _ = _apply([transform], image, masks)
        except Exception as error:
            raise ValueError(
                f"{where} cannot be applied to an image of {size[0]} x {size[1]} (height x width) and its masks: "
                f"{str(error) or type(error).__name__}"
            ) from error
    height, width = changed.shape[1:]
    return height, width
