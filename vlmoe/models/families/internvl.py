"""InternVL: a grid of tiles in the picture's shape, and the whole of it; all of 256 tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig

from vlmoe.data.turn import PICTURE
from vlmoe.errors import UserError
from vlmoe.models.family import Family, Patches, Size, square_patches
from vlmoe.models.sized import Runs, SizedFamily, SizedReader

_BEGIN, _END = "<img>", "</img>"


class InternReader(SizedReader):
    """See ``SizedReader``."""

    @property
    def written(self) -> tuple[str, ...]:
        """Converted checkpoints' templates write ``<image>``, newer ones what the model knows."""
        return self.mark, PICTURE

    def runs(self, size: Size) -> Runs:
        """One run, of all tiles."""
        tiles = self.processor.get_number_of_image_patches(*size)
        return Runs(f"{_BEGIN}{self.mark}{_END}", tiles * _tile_tokens(self.config), tiles)

    def encoded(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """``pixel_values`` (tiles of all pictures, 3, side, side)."""
        made = self.processor(images=list(pictures), return_tensors="pt")
        return {"pixel_values": made["pixel_values"]}

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """Those of the whole picture, which comes behind its tiles; each has a class token."""
        if "pixel_values" not in batch:
            return None
        tiles, patch = batch["pixel_values"], self.config.vision_config.patch_size[0]
        first = (len(tiles) - 1) * ((tiles.shape[-1] // patch) ** 2 + 1) + 1
        return square_patches(tiles[-1], self.processor, patch, first)

    @property
    def largest(self) -> Sequence[Size]:
        """A row of as many tiles as there may be."""
        side = self.processor.size["height"]
        return [Size(side, side * self.processor.max_patches)]

    def capped(self, most: int) -> SizedReader:
        """Pictures are cut into fewer tiles."""
        tokens = _tile_tokens(self.config)
        if most < tokens:
            raise UserError(
                f"--max-picture-tokens {most}: even a small picture takes {tokens} tokens"
            )
        processor = copy.copy(self.processor)
        # The whole picture is one more, unless it is the only one.
        processor.max_patches = max(1, min(processor.max_patches, most // tokens - 1))
        return replace(self, processor=processor)


class InternFamily(SizedFamily):
    """See ``vlmoe.models.family.Family``."""

    def numbers(self, config: PretrainedConfig) -> dict[str, Any]:
        """See ``SizedFamily.numbers``."""
        height, width = _both(config.vision_config.image_size)
        return {"size": {"height": height, "width": width}}

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """Tiles must be as large as the tower takes."""
        height, width = _both(config.vision_config.image_size)
        made = processor.size
        if (made["height"], made["width"]) != (height, width):
            raise UserError(
                f"the picture processor makes tiles of {made['width']} x {made['height']} pixels, "
                f"the vision tower takes {width} x {height}: processor and model do not belong "
                "together"
            )


def _both(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _tile_tokens(config: PretrainedConfig) -> int:
    vision = config.vision_config
    height, width = _both(vision.image_size)
    down, across = _both(vision.patch_size)
    return int((height // down) * (width // across) * config.downsample_ratio**2)


INTERNVL: Family = InternFamily(
    InternReader,
    "GotOcr2ImageProcessor",
    ("lm_head", "model.multi_modal_projector"),
    crop_to_patches=True,
)
