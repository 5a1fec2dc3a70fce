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

from vlmoe.choices import IMAGE_FITS
from vlmoe.data.answer_tokens import AnswerTokens
from vlmoe.data.example import LETTERS, UNLABELLED, Example
from vlmoe.data.prompt import IMAGE, LLAVA, PromptStyle, chat
from vlmoe.errors import UserError

IGNORED = -100


@dataclass(frozen=True)
class Collator:
    """Make batches for one model.

    Attributes:
        processor: its tokenizer and picture processor are used.
        image_tokens: tokens one picture takes; never truncated.
        answer: the tokens of every answer.
        max_length: longest sequence the model takes, pictures included.
        image_fit: ``crop`` (the hub's processor: shorter side to size, centre kept) or ``pad``
            (original LLaVA: the whole picture on a square of the mean colour).
        style: how questions are put; ``answer`` belongs to it.
    """

    processor: LlavaProcessor
    image_tokens: int
    answer: AnswerTokens
    max_length: int
    image_fit: str = "crop"
    style: PromptStyle = LLAVA

    def __post_init__(self) -> None:
        if self.image_fit not in IMAGE_FITS:
            raise UserError(f"unknown image fit {self.image_fit!r}: choose from {IMAGE_FITS}")

    @property
    def letter_ids(self) -> tuple[int, ...]:
        """Token of each answer letter in the place where it is scored."""
        return self.answer.letters

    def training(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch with answers.

        Returns:
            ``input_ids``, ``attention_mask`` (N, S), ``labels`` (N, S; ``IGNORED`` but on the
            answer, the last ``len(self.answer)`` tokens of every row) and, if any example has a
            picture, ``pixel_values`` (pictures, 3, side, side) in the order of the examples that
            have one.

        Raises:
            UserError: an example is unlabelled, has more options than letters, or is too long.
        """
        for example in examples:
            if example.answer == UNLABELLED:
                raise UserError(f"example {example.id} has no answer and cannot be trained on")
        rows = [[*self._prompt_ids(example), *self.answer(example.answer)] for example in examples]
        batch = self._pad(rows, examples)
        labels = torch.full_like(batch["input_ids"], IGNORED)
        answers = slice(-len(self.answer), None)
        labels[:, answers] = batch["input_ids"][:, answers]
        return {**batch, "labels": labels, **self._pixels(examples)}

    def scoring(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch of prompts and what precedes a letter; the next token of every row is the letter.

        Returns:
            As ``training``, without ``labels``.
        """
        rows = [[*self._prompt_ids(example), *self.answer.lead] for example in examples]
        return {**self._pad(rows, examples), **self._pixels(examples)}

    def asking(self, examples: Sequence[Example], room: int) -> dict[str, torch.Tensor]:
        """Batch of prompts alone; ``room`` tokens of free text fit behind each."""
        rows = [self._prompt_ids(example) for example in examples]
        return {**self._pad(rows, examples, room), **self._pixels(examples)}

    def options(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """As ``scoring``, with the text of every option in the place of its letter.

        Returns:
            ``scoring``'s batch, and ``option_ids``, ``option_mask`` (N, options, L): each text's
            tokens, ended by padding; rows with fewer options are filled with empty ones.
        """
        texts = [self._option_ids(example) for example in examples]
        longest = [max(map(len, ids)) for ids in texts]
        rows = [[*self._prompt_ids(example), *self.answer.lead] for example in examples]
        batch = {**self._pad(rows, examples, longest), **self._pixels(examples)}
        shape = (len(texts), max(map(len, texts)), max(longest))
        option_ids = torch.full(shape, self.processor.tokenizer.pad_token_id)
        option_mask = torch.zeros(shape, dtype=torch.long)
        for row, ids_of_row in enumerate(texts):
            for option, ids in enumerate(ids_of_row):
                option_ids[row, option, : len(ids)] = torch.tensor(ids)
                option_mask[row, option, : len(ids)] = 1
        return {**batch, "option_ids": option_ids, "option_mask": option_mask}

    def length(self, example: Example, *, picture: bool) -> int:
        """Tokens of an example with its answer. Its picture counts, but need not be loaded."""
        return len(self.prompt_ids(example, picture=picture)) + len(self.answer)

    def prompt_ids(self, example: Example, *, picture: bool) -> list[int]:
        """The prompt's tokens, the picture as ``image_tokens`` of them."""
        if len(example.choices) > len(self.letter_ids):
            raise UserError(
                f"example {example.id} has {len(example.choices)} options, this model's "
                f"tokenizer has single tokens for {len(self.letter_ids)} letters only "
                f"({LETTERS[: len(self.letter_ids)]})"
            )
        tokenizer = self.processor.tokenizer
        ids = tokenizer(self.style.prompt(example, picture=picture))["input_ids"]
        if picture:
            image_id = tokenizer.convert_tokens_to_ids(IMAGE)
            at = ids.index(image_id)
            ids = [*ids[:at], *[image_id] * self.image_tokens, *ids[at + 1 :]]
        return ids

    def _prompt_ids(self, example: Example) -> list[int]:
        return self.prompt_ids(example, picture=example.image is not None)

    def _option_ids(self, example: Example) -> list[list[int]]:
        """The tokens of each option's text behind the prompt and the answer's lead."""
        tokenizer = self.processor.tokenizer
        before = chat("Which?", picture=False, gap=self.style.gap) + self.style.lead
        start = len(tokenizer(before)["input_ids"])
        return [
            tokenizer(f"{before} {choice.strip()}")["input_ids"][start:]
            for choice in example.choices
        ]

    def _pad(
        self,
        rows: list[list[int]],
        examples: Sequence[Example],
        room: int | Sequence[int] = 0,
    ) -> dict[str, torch.Tensor]:
        """Left padding; behind row i there must be room for ``room[i]`` more tokens."""
        rooms = [room] * len(rows) if isinstance(room, int) else room
        for row, example, more in zip(rows, examples, rooms, strict=True):
            if len(row) + more > self.max_length:
                raise UserError(
                    f"example {example.id} takes {len(row) + more} tokens, the model at most "
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
