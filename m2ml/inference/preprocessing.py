"""Pictures as a model was taught to see them: resized, cropped, and in its scale of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2ml.models.settings import CheckpointError, Settings

if TYPE_CHECKING:
    from PIL.Image import Image

Pair = tuple[int, int]

#: Pillow's numbers of its filters, by the names that configurations have.
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

PREPROCESSOR = "preprocessor_config.json"

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """``(pixel * scale - mean) / std`` of a picture that was resized, then cropped about its middle.

    ``resize`` is the shorter side, the other in proportion; or height and width; or None to leave it. ``crop`` is the
    height and width of what is kept, with zeros around a picture that is smaller. ``resample`` is a filter of Pillow.
    """

    resize: int | Pair | None
    crop: Pair | None
    resample: str = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD

    def __call__(self, picture: Any, /) -> np.ndarray[Any, Any]:
        """float32 ``[height, width, 3]`` of a path, a Pillow image, or an array uint8 ``[height, width, 3]``."""
        pixels = np.asarray(self._resized(opened(picture)), np.float32)
        if self.crop is not None:
            pixels = _cropped(pixels, self.crop)
        return (pixels * np.float32(self.scale) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def batch(self, pictures: Sequence[Any]) -> np.ndarray[Any, Any]:
        """Several pictures as float32 ``[pictures, height, width, 3]``. Raises `CheckpointError` for unlike sizes."""
        found = [self(picture) for picture in pictures]
        if len({each.shape for each in found}) > 1:
            sizes = ", ".join(sorted({f"{each.shape[0]}x{each.shape[1]}" for each in found}))
            raise CheckpointError(f"this model leaves pictures as large as they are, and these differ: {sizes}")
        return np.stack(found)

    def _resized(self, image: Image) -> Image:
        if self.resize is None:
            return image
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short = min(image.size)
            width, height = (self.resize if side == short else int(self.resize * side / short) for side in image.size)
        return image.resize((width, height), FILTERS[self.resample])


def opened(picture: Any) -> Image:
    """The picture in red, green and blue. Raises `CheckpointError` for what is none."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, str | Path):
        try:
            return Image.open(picture).convert("RGB")
        except UnidentifiedImageError as error:
            raise CheckpointError(f"{picture} is no picture that Pillow reads") from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise CheckpointError(f"{picture} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if isinstance(picture, np.ndarray) and (picture.dtype != np.uint8 or picture.ndim not in (2, 3)):
        said = f"{picture.dtype.name}{list(picture.shape)}"
        raise CheckpointError(f"a picture is an array uint8 [height, width, 3], or without the 3; got {said}")
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return image.convert("RGB")


def _cropped(pixels: np.ndarray[Any, Any], size: Pair) -> np.ndarray[Any, Any]:
    """The middle, with zeros around what is smaller."""
    short = [max(wanted - there, 0) for wanted, there in zip(size, pixels.shape, strict=False)]
    pixels = np.pad(pixels, [((n + 1) // 2, n // 2) for n in short] + [(0, 0)])
    top, left = ((there - wanted) // 2 for wanted, there in zip(size, pixels.shape, strict=False))
    return pixels[top : top + size[0], left : left + size[1]]


def preprocessing_of(s: Settings, size: Pair) -> Preprocessing:
    """What ``preprocessor_config.json`` says; where it says nothing, pictures are made ``size``."""
    crops = bool(s.get("do_center_crop", s.get("crop_size") is not None))
    crop = _size(s, "crop_size", size) if crops else None
    resize: int | Pair | None = None
    if s.get("do_resize", True):
        given = _size_or_side(s, size)
        share = s.get("crop_pct")
        if share is not None and isinstance(given, int):  # ConvNeXt's: smaller ones are cropped, the others are not
            resize, crop = (int(given / share), (given, given)) if given < 384 else ((given, given), None)
        else:
            resize = given
    filters = {number: name for name, number in FILTERS.items()}
    resample = s.get("resample", 2)
    if resample not in filters:
        raise s.wrong("resample", resample, f"it must be one of {', '.join(map(str, filters))}")
    scale = s.number("rescale_factor", 1 / 255) if s.get("do_rescale", True) else 1.0
    offset = bool(s.get("do_normalize", True))
    mean, std = (
        _three(s, name, default) if offset else (plain,) * 3
        for name, default, plain in (("image_mean", _IMAGENET_MEAN, 0.0), ("image_std", _IMAGENET_STD, 1.0))
    )
    return Preprocessing(resize, crop, filters[resample], scale, mean, std)


def of_timm(s: Settings, size: Pair) -> Preprocessing:
    """What timm's ``pretrained_cfg`` says: a share of the picture is kept, and the rest cropped off."""
    given = s.get("input_size", [3, *size])
    if not isinstance(given, list) or len(given) != 3 or not all(isinstance(n, int) and n > 0 for n in given):
        raise s.wrong("input_size", given, "it must be channels, height and width")
    resample = str(s.get("interpolation", "bicubic"))
    if resample not in FILTERS:
        raise s.wrong("interpolation", resample, f"it must be one of {', '.join(FILTERS)}")
    share = s.number("crop_pct", 0.875)
    if not 0 < share <= 1:
        raise s.wrong("crop_pct", share, "it must be above 0 and at most 1")
    mean, std = _three(s, "mean", _IMAGENET_MEAN), _three(s, "std", _IMAGENET_STD)
    return Preprocessing(int(min(given[1:]) / share), (given[1], given[2]), resample, mean=mean, std=std)


def _size_or_side(s: Settings, default: Pair) -> int | Pair:
    value = s.get("size")
    if isinstance(value, dict) and "shortest_edge" in value:
        return s.part("size").integer("shortest_edge", most=1 << 16)
    return value if isinstance(value, int) and s.get("do_center_crop") else _size(s, "size", default)


def _size(s: Settings, name: str, default: Pair) -> Pair:
    value = s.get(name)
    if value is None:
        return default
    given = s.part(name) if isinstance(value, dict) else Settings({"height": value, "width": value}, s.source)
    return given.integer("height", most=1 << 16), given.integer("width", most=1 << 16)


def _three(s: Settings, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = s.get(name, list(default))
    value = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(x, int | float) for x in value):
        raise s.wrong(name, value, "it must be a number for red, green and blue each")
    return tuple(map(float, value))
