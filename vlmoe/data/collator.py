"""Examples -> tensors. Sequences end together (left padding), so answers sit at the end.

That one layout serves training, scoring and generation: the logits that matter are the last
ones of every row, and no others need computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import LlavaProcessor

from vlmoe.data.example import LETTERS, UNLABELLED, Example
from vlmoe.data.prompt import IMAGE, prompt
from vlmoe.errors import UserError

IGNORED = -100
ANSWER_TOKENS = 2  # the letter and the end of the sequence
IMAGE_FITS = ("crop", "pad")


@dataclass(frozen=True)
class Collator:
    """Make batches for one model.

    Attributes:
        processor: its tokenizer and picture processor are used.
        image_tokens: tokens one picture takes; never truncated.
        letter_ids: token of each answer letter.
        max_length: longest sequence the model takes, pictures included.
        image_fit: ``crop`` (the hub's processor: shorter side to size, centre kept) or ``pad``
            (original LLaVA: the whole picture on a square of the mean colour).
    """

    processor: LlavaProcessor
    image_tokens: int
    letter_ids: tuple[int, ...]
    max_length: int
    image_fit: str = "crop"

    def __post_init__(self) -> None:
        if self.image_fit not in IMAGE_FITS:
            raise UserError(f"unknown image fit {self.image_fit!r}: choose from {IMAGE_FITS}")

    def training(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch with answers.

        Returns:
            ``input_ids``, ``attention_mask`` (N, S), ``labels`` (N, S; ``IGNORED`` but on the
            answer's letter and end token) and, if any example has a picture, ``pixel_values``
            (pictures, 3, side, side) in the order of the examples that have one.

        Raises:
            UserError: an example is unlabelled, has more options than letters, or is too long.
        """
        for example in examples:
            if example.answer == UNLABELLED:
                raise UserError(f"example {example.id} has no answer and cannot be trained on")
        end = self.processor.tokenizer.eos_token_id
        rows = [
            [*self._prompt_ids(example), self.letter_ids[example.answer], end]
            for example in examples
        ]
        batch = self._pad(rows, examples)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        labels[:, -ANSWER_TOKENS:] = batch["input_ids"][:, -ANSWER_TOKENS:]
        return {**batch, "labels": labels, **self._pixels(examples)}

    def scoring(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch of prompts alone; the next token of every row is the answer's letter."""
        rows = [self._prompt_ids(example) for example in examples]
        return {**self._pad(rows, examples), **self._pixels(examples)}

    def length(self, example: Example, *, picture: bool) -> int:
        """Tokens of an example with its answer. Its picture counts, but need not be loaded."""
        return len(self.prompt_ids(example, picture=picture)) + ANSWER_TOKENS

    def prompt_ids(self, example: Example, *, picture: bool) -> list[int]:
        """The prompt's tokens, the picture as ``image_tokens`` of them."""
        if len(example.choices) > len(self.letter_ids):
            raise UserError(
                f"example {example.id} has {len(example.choices)} options, this model's "
                f"tokenizer has single tokens for {len(self.letter_ids)} letters only "
                f"({LETTERS[: len(self.letter_ids)]})"
            )
        tokenizer = self.processor.tokenizer
        ids = tokenizer(prompt(example, picture=picture))["input_ids"]
        if picture:
            image_id = tokenizer.convert_tokens_to_ids(IMAGE)
            at = ids.index(image_id)
            ids = [*ids[:at], *[image_id] * self.image_tokens, *ids[at + 1 :]]
        return ids

    def _prompt_ids(self, example: Example) -> list[int]:
        return self.prompt_ids(example, picture=example.image is not None)

    def _pad(self, rows: list[list[int]], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        for row, example in zip(rows, examples, strict=True):
            if len(row) > self.max_length:
                raise UserError(
                    f"example {example.id} takes {len(row)} tokens, the model at most "
                    f"{self.max_length}; shorten its question or options"
                )
        width = max(map(len, rows))
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def _pixels(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        pictures = [example.image for example in examples if example.image is not None]
        if not pictures:
            return {}
        if self.image_fit == "pad":
            pictures = [self._square(picture) for picture in pictures]
        processed = self.processor.image_processor(images=pictures, return_tensors="pt")
        return {"pixel_values": processed["pixel_values"]}

    def _square(self, picture: Image.Image) -> Image.Image:
        side = max(picture.size)
        mean = tuple(round(255 * part) for part in self.processor.image_processor.image_mean)
        square = Image.new("RGB", (side, side), mean)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return square
