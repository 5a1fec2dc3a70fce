"""Gemma 3 with its SigLIP tower: every picture a square of 256 tokens, which see each other.

The tokens of a picture see one another both ways, and nothing behind them; the text sees as in any
causal model. Five layers of six have a window, which a picture has, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PretrainedConfig

from vlmoe.errors import UserError
from vlmoe.models.causal import as_scores, dense_fault, sharing_fault, windows
from vlmoe.models.family import Family, Patches, Size, square_patches
from vlmoe.models.sized import Runs, SizedFamily, SizedReader


class GemmaReader(SizedReader):
    """See ``SizedReader``."""

    @property
    def written(self) -> tuple[str, ...]:
        """The token that begins a picture."""
        return (self._token(self.config.boi_token_id),)

    def runs(self, size: Size) -> Runs:
        """One run, between its begin and end."""
        begin, end = (
            self._token(token) for token in (self.config.boi_token_id, self.config.eoi_token_id)
        )
        return Runs(f"\n\n{begin}{self.mark}{end}\n\n", self.config.mm_tokens_per_image)

    def encoded(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """``pixel_values`` (pictures, 3, side, side)."""
        made = self.processor(images=list(pictures), return_tensors="pt")
        return {"pixel_values": made["pixel_values"]}

    @property
    def largest(self) -> Sequence[Size]:
        """All are equal."""
        return [Size(100, 100)]

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """A square of them."""
        if "pixel_values" not in batch:
            return None
        patch = self.config.vision_config.patch_size
        return square_patches(batch["pixel_values"][0], self.processor, patch, 0)

    def _token(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))


class GemmaFamily(SizedFamily):
    """See ``vlmoe.models.family.Family``."""

    def numbers(self, config: PretrainedConfig) -> dict[str, Any]:
        """See ``SizedFamily.numbers``."""
        side = config.vision_config.image_size
        return {"size": {"height": side, "width": side}}

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """One picture, not a picture and crops of it."""
        if processor.do_pan_and_scan:
            raise UserError("Gemma 3's pan-and-scan is not supported: set do_pan_and_scan to false")
        side = config.vision_config.image_size
        if (processor.size["height"], processor.size["width"]) != (side, side):
            raise UserError(
                f"the picture processor makes {processor.size['width']} x "
                f"{processor.size['height']} pixels, the vision tower takes {side} x {side}: "
                "processor and model do not belong together"
            )

    def sharing_fault(self, config: PretrainedConfig) -> str | None:
        """As for its language model; FlexAttention would need a block mask of its own."""
        return dense_fault(config) or sharing_fault(config)

    def seeing(self, base: Any, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """Masks by kind of layer; of tokens that follow a cache nothing but which are padding."""
        ids, text = batch["input_ids"], base.config.get_text_config()
        positions = batch["position_ids"]
        mask: Any = batch["attention_mask"]
        if mask.shape == ids.shape:
            sees = tokens_seen(batch, ids == base.config.image_token_id)
            mask = {
                kind: as_scores(sees if window is None else sees & _near(positions, window), dtype)
                for kind, window in windows(text).items()
            }
        return {"attention_mask": mask, "position_ids": positions}


def tokens_seen(batch: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """Whether token t sees token s (R, T, S), a window aside.

    Args:
        batch: of trees, or of whole sequences padded on either side.
        image: (R, S), which tokens are a picture's; those of one stand together.
    """
    kept = batch["attention_mask"].bool()
    t = torch.arange(image.shape[1], device=image.device)[:, None]
    # Padding sees itself, or it would be no numbers.
    sees = (t >= t.T) & (kept[:, None] | (t == t.T))
    if "seen_until" in batch:
        sees &= t < batch["seen_until"][:, None]
    begins = image & ~torch.nn.functional.pad(image, (1, -1))
    run = begins.cumsum(-1).where(image, 0)
    return sees | ((run[:, :, None] == run[:, None]) & image[:, None])


def _near(positions: Tensor, window: int) -> Tensor:
    """Whether t is less than ``window`` tokens behind s on its way from the root (R, T, S)."""
    return positions[:, :, None] - positions[:, None] < window


# The projector is a bare parameter.
_KEPT = ("lm_head", "model.multi_modal_projector")
GEMMA3: Family = GemmaFamily(GemmaReader, "Gemma3ImageProcessor", _KEPT)
