"""Idefics3 and SmolVLM: a picture in tiles, row by row, and then the whole of it.

Markup stands between: ``<fake_token_around_image><row_1_col_1>`` and so on. Small pictures are
enlarged, so they take as many tokens as large ones; ``max_picture_tokens`` makes the processor
enlarge them less.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig

from vlmoe.errors import UserError
from vlmoe.models.family import Family, Patches, Size, square_patches
from vlmoe.models.sized import Runs, SizedFamily, SizedReader

_FAKE, _WHOLE = "<fake_token_around_image>", "<global-img>"
_HIGHEST = 4096  # pixels of a side, by the processor's code


class IdeficsReader(SizedReader):
    """See ``SizedReader``."""

    def runs(self, size: Size) -> Runs:
        """One run for each tile and one for the whole picture."""
        rows, columns = self._tiles(size)
        text = ""
        for row in range(rows):
            for column in range(columns):
                text += f"{_FAKE}<row_{row + 1}_col_{column + 1}>{self.mark}"
            text += "\n"
        text += f"{chr(10) * bool(rows)}{_FAKE}{_WHOLE}{self.mark}{_FAKE}"
        return Runs(text, _tile_tokens(self.config), rows * columns + 1)

    def encoded(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """``pixel_values`` (pictures, most tiles, 3, side, side), ``pixel_attention_mask``."""
        made = self.processor(images=[[picture] for picture in pictures], return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "pixel_attention_mask")}

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """Those of the whole picture, which comes behind its tiles."""
        if "pixel_values" not in batch:
            return None
        tiles, patch = batch["pixel_values"][0], self.config.vision_config.patch_size
        first = (len(tiles) - 1) * (tiles.shape[-1] // patch) ** 2
        return square_patches(tiles[-1], self.processor, patch, first)

    @property
    def largest(self) -> Sequence[Size]:
        """A square one."""
        return [Size(100, 100)]

    def capped(self, most: int) -> SizedReader:
        """Pictures are enlarged to fewer tiles, or to none but the whole."""
        tile = self.processor.max_image_size["longest_edge"]
        edge = int(self.processor.size["longest_edge"])
        while edge > tile and self._largest_at(edge) > most:
            edge -= tile
        if self._largest_at(edge) > most:
            raise UserError(
                f"--max-picture-tokens {most}: even a small picture takes {self._largest_at(edge)} "
                "tokens"
            )
        return self._at(edge)

    def _at(self, edge: int) -> IdeficsReader:
        processor = copy.copy(self.processor)
        processor.size = {**dict(processor.size), "longest_edge": edge}
        return replace(self, processor=processor)

    def _largest_at(self, edge: int) -> int:
        reader = self._at(edge)
        return max(reader._count(size) for size in reader.largest)

    def _tiles(self, size: Size) -> tuple[int, int]:
        """Rows and columns of tiles, by the processor's own rounding; 0, 0 if there is one."""
        if not self.processor.do_image_splitting:
            return 0, 0
        tile = self.processor.max_image_size["longest_edge"]
        height, width = _enlarged(size, self.processor.size["longest_edge"])
        height, width = _below(Size(height, width), _HIGHEST)
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / tile)
            rows = math.ceil(int(columns * tile / ratio) / tile)
        else:
            rows = math.ceil(height / tile)
            columns = math.ceil(int(rows * tile * ratio) / tile)
        return (rows, columns) if rows * columns > 1 else (0, 0)


class IdeficsFamily(SizedFamily):
    """See ``vlmoe.models.family.Family``."""

    sized = ("pixel_attention_mask",)

    def numbers(self, config: PretrainedConfig) -> dict[str, Any]:
        """See ``SizedFamily.numbers``; on the hub, too, pictures are enlarged to four tiles."""
        side = config.vision_config.image_size
        return {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": 4 * side}}

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """Tiles must be as large as the tower takes."""
        made, side = processor.max_image_size["longest_edge"], config.vision_config.image_size
        if made != side or not processor.size.get("longest_edge"):
            raise UserError(
                f"the picture processor makes tiles of {made} pixels, the vision tower takes "
                f"{side}: processor and model do not belong together"
            )


def _tile_tokens(config: PretrainedConfig) -> int:
    side = config.vision_config.image_size // config.vision_config.patch_size
    return int(side**2 / config.scale_factor**2)


def _enlarged(size: Size, edge: int) -> Size:
    """With the longer side at ``edge``, the other one even."""
    height, width = size
    if width >= height:
        short = int(edge / (width / height))
        return Size(max(short + short % 2, 1), edge)
    short = int(edge * (width / height))
    return Size(edge, max(short + short % 2, 1))


def _below(size: Size, most: int) -> Size:
    height, width = size
    ratio = width / height
    if width >= height and width > most:
        height, width = int(most / ratio), most
    elif height > width and height > most:
        height, width = most, int(most * ratio)
    return Size(max(height, 1), max(width, 1))


_KEPT = ("lm_head", "model.connector")
IDEFICS3: Family = IdeficsFamily(IdeficsReader, "Idefics3ImageProcessor", _KEPT)
SMOLVLM: Family = IdeficsFamily(IdeficsReader, "SmolVLMImageProcessor", _KEPT)
