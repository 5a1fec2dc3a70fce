"""LLaVA-NeXT and LLaVA-OneVision: the whole picture small, and a grid of tiles of it.

Of the sizes in ``image_grid_pinpoints`` the one that fits a picture best is filled with it and cut
into tiles, and every tile goes through the tower; what lies outside of the picture is taken away
again, and a row of the rest ends in a newline of its own. OneVision shrinks what would be more than
nine tiles (``vision_aspect_ratio``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig
from transformers.image_processing_utils import select_best_resolution

from vlmoe.errors import UserError
from vlmoe.models.family import Family, Patches, Size, square_patches
from vlmoe.models.sized import Runs, SizedFamily, SizedReader

_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
_MOST = re.compile(r"anyres_max_(\d+)")
_SHRUNK_BEYOND = 1.1  # as in the model's own code


class AnyresReader(SizedReader):
    """See ``SizedReader``."""

    def runs(self, size: Size) -> Runs:
        """One run: the whole picture, and the rows of its tiles."""
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        tile_rows, tile_columns = self._tiles(size)
        rows, columns = self._grid(size, side)
        parts = 1 + tile_rows * tile_columns
        return Runs(self.mark, side * side + rows * (columns + 1), parts)

    def encoded(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """``pixel_values`` (pictures, most tiles, 3, side, side), ``image_sizes`` (pictures, 2)."""
        made = self.processor(images=list(pictures), return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_sizes")}

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """Those of the whole picture, which comes before its tiles."""
        if "pixel_values" not in batch:
            return None
        vision = self.config.vision_config
        first = _CLASS_TOKENS[vision.model_type]
        whole = batch["pixel_values"][0][0]
        return square_patches(whole, self.processor, vision.patch_size, first)

    @property
    def largest(self) -> Sequence[Size]:
        """A picture that fills a size whole."""
        return [Size(*point) for point in self.config.image_grid_pinpoints]

    def _tiles(self, size: Size) -> tuple[int, int]:
        """Rows and columns of them."""
        tile = self.config.vision_config.image_size
        down, across = select_best_resolution(tuple(size), self.config.image_grid_pinpoints)
        return down // tile, across // tile

    def _grid(self, size: Size, side: int) -> tuple[int, int]:
        """Rows and columns that are left of the tiles' patches, by the model's own rounding."""
        height, width = size
        rows, columns = (side * tiles for tiles in self._tiles(size))
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        if limit := _MOST.fullmatch(getattr(self.config, "vision_aspect_ratio", "")):
            ratio = math.sqrt(rows * columns / (int(limit[1]) * side**2))
            if ratio > _SHRUNK_BEYOND:
                rows, columns = int(rows // ratio), int(columns // ratio)
        return rows, columns


class AnyresFamily(SizedFamily):
    """See ``vlmoe.models.family.Family``."""

    sized = ("image_sizes",)

    def numbers(self, config: PretrainedConfig) -> dict[str, Any]:
        """See ``SizedFamily.numbers``."""
        side = config.vision_config.image_size
        square = {"height": side, "width": side}
        points = [list(point) for point in config.image_grid_pinpoints]
        return {"size": square, "crop_size": square, "image_grid_pinpoints": points}

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """A tile must be as many tokens as it has patches, and the processor's be the model's."""
        kind = config.vision_config.model_type
        if kind not in _CLASS_TOKENS:
            raise UserError(
                f"{config.model_type} with a vision tower of type {kind!r} has not been tried: "
                f"those that have are {', '.join(_CLASS_TOKENS)}"
            )
        if _CLASS_TOKENS[kind] != (config.vision_feature_select_strategy == "default"):
            raise UserError(
                f"vision_feature_select_strategy {config.vision_feature_select_strategy!r} does "
                f"not go with a tower of type {kind!r}: its tokens would be no grid"
            )
        side = config.vision_config.image_size
        made = processor.crop_size.get("height") if processor.do_center_crop else None
        made = made or processor.size.get("height") or processor.size.get("shortest_edge")
        points = [list(point) for point in processor.image_grid_pinpoints]
        if made != side or points != [list(point) for point in config.image_grid_pinpoints]:
            raise UserError(
                f"the picture processor makes tiles of {made} pixels of {points}, the model takes "
                f"{side} of {config.image_grid_pinpoints}: they do not belong together"
            )


_KEPT = ("lm_head", "multi_modal_projector", "model.multi_modal_projector")
NEXT: Family = AnyresFamily(AnyresReader, "LlavaNextImageProcessor", _KEPT)
ONEVISION: Family = AnyresFamily(AnyresReader, "LlavaOnevisionImageProcessor", _KEPT)
