"""Examples -> tensors. What questions begin with alike, a picture above all, goes in once.

For training and scoring questions become rows of trees (``vlmoe.data.tree``), and the batch says
where the states stand that logits are read off: no others need computing. For generation every
question has a row of its own, which ends where the model goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import LlavaProcessor

from vlmoe.choices import IMAGE_FITS
from vlmoe.data.answer_tokens import AnswerTokens
from vlmoe.data.example import LETTERS, UNLABELLED, Example
from vlmoe.data.fit import cropped, padded
from vlmoe.data.prompt import IMAGE, LLAVA, PromptStyle, Turn, chat, conversation
from vlmoe.data.tree import pack
from vlmoe.errors import UserError


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
        sharing_fault: why questions must not share tokens, if they must not; then each has a row of
            its own.
        row_tokens: questions that share tokens do so up to rows of this length (default:
            ``max_length``).
    """

    processor: LlavaProcessor
    image_tokens: int
    answer: AnswerTokens
    max_length: int
    image_fit: str = "crop"
    style: PromptStyle = LLAVA
    sharing_fault: str | None = None
    row_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.image_fit not in IMAGE_FITS:
            raise UserError(f"unknown image fit {self.image_fit!r}: choose from {IMAGE_FITS}")

    @property
    def letter_ids(self) -> tuple[int, ...]:
        """Token of each answer letter in the place where it is scored."""
        return self.answer.letters

    def training(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch with answers. N questions, A = ``len(self.answer)`` tokens of an answer.

        Returns:
            The rows of ``tree.pack``; ``labels`` (N, A), the tokens of each answer; ``read_at`` (N,
            A), where in the flattened rows the states stand that predict them; and, if any
            example has a picture, ``pixel_values`` (pictures, 3, side, side), every picture once,
            ``picture_of``, which of them stands at each place for one, in the rows' order, and
            ``picture_uses`` (pictures,), how many sequences are about each.

        Raises:
            UserError: an example is unlabelled, has more options than letters, or is too long.
        """
        for example in examples:
            if example.answer == UNLABELLED:
                raise UserError(f"example {example.id} has no answer and cannot be trained on")
        answers = [self.answer(example.answer) for example in examples]
        prompts = [self._prompt_ids(example) for example in examples]
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        batch, paths = self._pack(rows, examples)
        before = slice(-len(self.answer) - 1, -1)
        batch["read_at"] = torch.tensor([path[before] for path in paths])
        return {**batch, "labels": torch.tensor(answers)}

    def scoring(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch of prompts and what precedes a letter; the next token of each is the letter.

        Returns:
            As ``training``, without ``labels``; ``read_at`` is (N,), of the states that predict the
            letters.
        """
        rows = [[*self._prompt_ids(example), *self.answer.lead] for example in examples]
        batch, paths = self._pack(rows, examples)
        return {**batch, "read_at": torch.tensor([path[-1] for path in paths])}

    def asking(self, examples: Sequence[Example], room: int) -> dict[str, torch.Tensor]:
        """Batch of prompts alone; ``room`` tokens of free text fit behind each.

        Returns:
            ``input_ids``, ``attention_mask`` (N, S), padded on the left; of pictures what
            ``training`` returns.
        """
        rows = [self._prompt_ids(example) for example in examples]
        self._check_lengths(rows, examples, [room] * len(rows))
        width = max(map(len, rows))
        pad = self.processor.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        pictures, picture_of = _distinct(examples)
        shown = [at for at in picture_of if at is not None]
        return {"input_ids": ids, "attention_mask": mask, **self._pixels(pictures, shown, shown)}

    def talking(
        self, image: Image.Image | None, turns: Sequence[Turn], room: int
    ) -> dict[str, torch.Tensor]:
        """A batch of one: a conversation about a picture, up to the last question's answer.

        Args:
            image: the picture, or None to talk without one.
            turns: the questions with their answers; the last one is to be answered.
            room: tokens that must fit behind it.

        Raises:
            UserError: the conversation is too long for the model.
        """
        row = self._ids(conversation(turns, picture=image is not None))
        if len(row) + room > self.max_length:
            raise UserError(
                f"the conversation takes {len(row)} tokens and its answer up to {room}, the model "
                f"at most {self.max_length}: begin a new one, or ask for a shorter answer"
            )
        ids = torch.tensor([row])
        pixels = {} if image is None else self._pixel_values([image])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}

    def options(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """As ``scoring``, with the text of every option in the place of its letter.

        Returns:
            ``scoring``'s batch, and ``option_ids``, ``option_mask`` (N, options, L): each text's
            tokens, ended by padding, the rows filled with empty ones where there are fewer options.
            ``read_at`` has their shape too: where the states stand that predict the tokens.
        """
        starts = [[*self._prompt_ids(example), *self.answer.lead] for example in examples]
        texts = [self._option_ids(example) for example in examples]
        # The last token of a text predicts nothing that is scored.
        rows = [
            [*start, *ids[:-1]]
            for start, of_row in zip(starts, texts, strict=True)
            for ids in of_row
        ]
        owners = [example for example, of_row in zip(examples, texts, strict=True) for _ in of_row]
        batch, paths = self._pack(rows, owners, room=1)
        shape = (len(texts), max(map(len, texts)), max(len(ids) for row in texts for ids in row))
        option_ids = torch.full(shape, self.processor.tokenizer.pad_token_id)
        option_mask, read_at = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        path = iter(paths)
        for row, ids_of_row in enumerate(texts):
            for option, ids in enumerate(ids_of_row):
                there = (row, option, slice(len(ids)))
                option_ids[there] = torch.tensor(ids)
                option_mask[there] = 1
                read_at[there] = torch.tensor(next(path)[-len(ids) :])
        more = {"option_ids": option_ids, "option_mask": option_mask, "read_at": read_at}
        return {**batch, **more}

    def length(self, example: Example, *, picture: bool) -> int:
        """Tokens of an example with its answer. Its picture counts, but need not be loaded."""
        return len(self.prompt_ids(example, picture=picture)) + len(self.answer)

    def seen(self, pixel_values: torch.Tensor) -> Image.Image:
        """The picture that the vision tower gets, from its ``pixel_values`` (3, side, side)."""
        picture_processor = self.processor.image_processor
        mean, std = (
            torch.tensor(parts)[:, None, None]
            for parts in (picture_processor.image_mean, picture_processor.image_std)
        )
        colours = (pixel_values.cpu().float() * std + mean).clamp(0, 1) * 255
        return Image.fromarray(colours.round().byte().permute(1, 2, 0).numpy(), "RGB")

    def prompt_ids(self, example: Example, *, picture: bool) -> list[int]:
        """The prompt's tokens, the picture as ``image_tokens`` of them."""
        if len(example.choices) > len(self.letter_ids):
            raise UserError(
                f"example {example.id} has {len(example.choices)} options, this model's "
                f"tokenizer has single tokens for {len(self.letter_ids)} letters only "
                f"({LETTERS[: len(self.letter_ids)]})"
            )
        return self._ids(self.style.prompt(example, picture=picture))

    def _ids(self, text: str) -> list[int]:
        """The tokens of a prompt, the one picture in it as ``image_tokens`` of them."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(text)["input_ids"]
        image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        if image_id in ids:
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

    def _pack(
        self, rows: list[list[int]], examples: Sequence[Example], room: int = 0
    ) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
        """The batch of ``training`` without labels, and where each row's tokens stand in it."""
        self._check_lengths(rows, examples, [room] * len(rows))
        pictures, picture_of = _distinct(examples)
        # Without a picture it is the question that different orders of options have in common.
        keys: list[Hashable] = [
            example.question if at is None else at
            for example, at in zip(examples, picture_of, strict=True)
        ]
        if self.sharing_fault is not None:
            keys = [(key, number) for number, key in enumerate(keys)]
        tokenizer = self.processor.tokenizer
        packed = pack(
            rows, keys, pad=tokenizer.pad_token_id, budget=self.row_tokens or self.max_length
        )
        image_id = tokenizer.convert_tokens_to_ids(IMAGE)
        about = dict(zip(keys, picture_of, strict=True))
        places = [
            picture
            for tree in packed.trees
            if (picture := about[tree.key]) is not None
            for _ in range(tree.ids.count(image_id) // self.image_tokens)
        ]
        uses = [at for at in picture_of if at is not None]
        return {**packed.tensors, **self._pixels(pictures, places, uses)}, packed.paths

    def _check_lengths(
        self, rows: list[list[int]], examples: Sequence[Example], rooms: Sequence[int]
    ) -> None:
        """Behind row i there must be room for ``rooms[i]`` more tokens. Raises ``UserError``."""
        for row, example, more in zip(rows, examples, rooms, strict=True):
            if len(row) + more > self.max_length:
                raise UserError(
                    f"example {example.id} takes {len(row) + more} tokens, the model at most "
                    f"{self.max_length}; shorten its question or options"
                )

    def _pixels(
        self, pictures: list[Image.Image], places: list[int], uses: list[int]
    ) -> dict[str, torch.Tensor]:
        if not pictures:
            return {}
        return {
            **self._pixel_values(pictures),
            "picture_of": torch.tensor(places),
            "picture_uses": torch.bincount(torch.tensor(uses), minlength=len(pictures)),
        }

    def _pixel_values(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        fit = padded if self.image_fit == "pad" else cropped
        processor = self.processor.image_processor
        fitted = [fit(picture, processor) for picture in pictures]
        return {"pixel_values": processor(images=fitted, return_tensors="pt")["pixel_values"]}


def _distinct(examples: Sequence[Example]) -> tuple[list[Image.Image], list[int | None]]:
    """Every picture once, and which of them each example is about."""
    pictures: list[Image.Image] = []
    known: dict[Hashable, int] = {}
    which: list[int | None] = []
    for example in examples:
        picture = example.image
        if picture is None:
            which.append(None)
            continue
        if id(picture) not in known:  # the same object needs no look at its pixels
            content = picture.mode, picture.size, _digest(picture)
            if content not in known:
                known[content] = len(pictures)
                pictures.append(picture)
            known[id(picture)] = known[content]
        which.append(known[id(picture)])
    return pictures, which


def _digest(picture: Image.Image, rows: int = 256) -> bytes:
    """A hash of the pixels, a band of rows at a time: a large picture is not copied whole."""
    digest = hashlib.sha256()
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        digest.update(band.tobytes())
    return digest.digest()
