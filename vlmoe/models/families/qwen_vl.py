"""Qwen2.5-VL and Qwen3-VL: a picture in patches of its own shape, positions on three axes.

A picture at position p has the positions (p, p + row, p + column); the text goes on behind the
larger of its sides. They are made here for each sequence: the model would keep how far they are
behind the tokens' count on itself, and mix up two conversations. Qwen3-VL adds features of earlier
vision layers behind the first layers of the language model (DeepStack).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PretrainedConfig, Qwen3VLModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmoe.errors import UserError
from vlmoe.models.causal import dense_fault
from vlmoe.models.family import Family, Patches, Size, picture_of
from vlmoe.models.sized import LONGEST, Runs, SizedFamily, SizedReader


class QwenReader(SizedReader):
    """See ``SizedReader``."""

    def runs(self, size: Size) -> Runs:
        """One run, of the merged patches."""
        rows, columns = self._grid(size)
        return Runs(self.mark, rows * columns, rows * columns)

    def encoded(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """``pixel_values`` (patches of all pictures, values), ``image_grid_thw`` (pictures, 3)."""
        made = self.processor(images=list(pictures), return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_grid_thw")}

    def positions(self, ids: Sequence[int], sizes: Sequence[Size]) -> Tensor:
        """(3, S): time, row and column."""
        size = iter(sizes)
        found: list[Tensor] = []
        start = at = 0
        while at < len(ids):
            if ids[at] != self.image_token:
                found.append(torch.full((3, 1), start))
                start, at = start + 1, at + 1
                continue
            rows, columns = self._grid(self.fitted(next(size)))
            grid = torch.cartesian_prod(*map(torch.arange, (1, rows, columns)))
            found.append(grid.T + start)
            start, at = start + max(rows, columns), at + rows * columns
        return torch.cat(found, 1)

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """All of them; they come in squares that are merged to a token, these in windows if any."""
        if "pixel_values" not in batch:
            return None
        merge, side = self.processor.merge_size, self.processor.patch_size
        _, height, width = batch["image_grid_thw"][0].tolist()
        rows, columns = height // merge, width // merge
        # Every number of a patch stands for one of its pixels, at each of its moments alike.
        values = batch["pixel_values"].view(rows, columns, merge, merge, 3, -1, side, side)[
            ..., 0, :, :
        ]
        pixels = values.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height * side, width * side)
        number = torch.empty(rows * columns, dtype=torch.long)
        number[self._cells(rows, columns)] = torch.arange(rows * columns)
        inside = torch.arange(merge * merge).view(merge, 1, merge)
        tokens = number.view(rows, 1, columns, 1) * merge * merge + inside
        return Patches(picture_of(pixels, self.processor), height, width, tokens.flatten().tolist())

    def _cells(self, rows: int, columns: int) -> Tensor:
        """The merged squares, numbered row by row, in the order in which the tower has them."""
        cells = torch.arange(rows * columns).view(rows, columns)
        window = getattr(self.config.vision_config, "window_size", None)
        if window is None:
            return cells.flatten()
        side = window // (self.processor.patch_size * self.processor.merge_size)
        windows = [part for band in cells.split(side) for part in band.split(side, 1)]
        return torch.cat([part.flatten() for part in windows])

    @property
    def largest(self) -> Sequence[Size]:
        """A square of all the pixels there may be; or a strip, which is at least one token wide."""
        side = math.isqrt(int(self.processor.size["longest_edge"]))
        return [Size(side, side), Size(side, LONGEST * side), Size(1, LONGEST)]

    def _grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of merged patches, by the processor's own rounding."""
        processor = self.processor
        cell = processor.patch_size * processor.merge_size
        least, most = (processor.size[edge] for edge in ("shortest_edge", "longest_edge"))
        height, width = size
        rows, columns = round(height / cell), round(width / cell)
        area = rows * columns * cell * cell
        if area > most:
            scale = math.sqrt(height * width / most) * cell
            rows, columns = (max(1, math.floor(side / scale)) for side in size)
        elif area < least:
            scale = math.sqrt(least / (height * width)) / cell
            rows, columns = (math.ceil(side * scale) for side in size)
        return rows, columns


class QwenFamily(SizedFamily):
    """See ``vlmoe.models.family.Family``."""

    sized = ("image_grid_thw",)

    def numbers(self, config: PretrainedConfig) -> dict[str, Any]:
        """See ``SizedFamily.numbers``; 4 to 1280 tokens, as in Qwen2-VL's."""
        vision = config.vision_config
        patch, merge = vision.patch_size, vision.spatial_merge_size
        area = (patch * merge) ** 2
        size = {"shortest_edge": 4 * area, "longest_edge": 1280 * area}
        return {"patch_size": patch, "merge_size": merge, "size": size}

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """Patches must be as large as the tower takes; and no windows over three axes."""
        vision = config.vision_config
        made = processor.patch_size, processor.merge_size
        if made != (vision.patch_size, vision.spatial_merge_size):
            raise UserError(
                f"the picture processor makes patches of {made[0]} pixels, {made[1]} x {made[1]} "
                f"to a token, the vision tower takes {vision.patch_size}, "
                f"{vision.spatial_merge_size}: processor and model do not belong together"
            )
        text = config.get_text_config()
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
            raise UserError("a Qwen-VL with sliding windows has not been tried: not supported")

    def sharing_fault(self, config: PretrainedConfig) -> str | None:
        """FlexAttention is not declared by these models; else nothing stands against it."""
        return dense_fault(config)


class DeepstackFamily(QwenFamily):
    """Qwen3-VL's: the model itself places features, those of several depths."""

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """Also that this transformers can be handed features; older ones would drop them."""
        super().check(config, processor)
        if "mm_encoder_outputs" not in inspect.signature(Qwen3VLModel.forward).parameters:
            raise UserError("Qwen3-VL needs a newer transformers: pip install -U transformers")

    def inputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Tokens, the pictures' features re-indexed for the model to place, mask and positions."""
        base: Any = model
        dtype = base.get_input_embeddings().weight.dtype
        inputs = {"input_ids": batch["input_ids"], **self.seeing(base, batch, dtype)}
        if "pixel_values" in batch:
            out = base.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
            rows = batch["feature_of"]
            placed: Any = (torch.cat(out.pooler_output)[rows],)  # as the model has it, a tuple
            encoded = BaseModelOutputWithPooling(pooler_output=placed)
            encoded["deepstack_features"] = [
                (torch.cat(list(layer))[rows],) for layer in out.deepstack_features
            ]
            inputs["mm_encoder_outputs"] = {"image": encoded}
        return inputs


QWEN2_5: Family = QwenFamily(
    QwenReader, "Qwen2VLImageProcessor", ("lm_head", "model.visual.merger")
)
QWEN3: Family = DeepstackFamily(
    QwenReader,
    "Qwen2VLImageProcessor",
    ("lm_head", "model.visual.merger", "model.visual.deepstack_merger_list"),
)
