"""Examples -> tensors. What questions begin with alike, a picture above all, goes in once.

For training and scoring questions become rows of trees (``vlmoe.models.tree``), and the batch says
where the states stand that logits are read off: no others need computing. For generation every
question has a row of its own, which ends where the model goes on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from vlmoe.choices import IMAGE_FITS
from vlmoe.data.described import Described
from vlmoe.data.example import LETTERS, Example
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.causal import longest
from vlmoe.models.decode import ROWS_AT, keeps_all
from vlmoe.models.family import Reader, Size, family_of
from vlmoe.models.sized import EQUAL, SizedReader
from vlmoe.models.tree import pack, with_pixels
from vlmoe.tasks.letters import Answers, answer_tokens
from vlmoe.tasks.plain import PlainReader
from vlmoe.tasks.prompt import LLAVA, PROMPTS, PromptStyle
from vlmoe.tasks.shown import Shown, size_of
from vlmoe.tasks.wordings import LabelStyle, style_of

Sizes = Sequence[Size | None]
"""Of pictures, in the order of their places; None: as large as there can be."""


class Row(NamedTuple):
    """One sequence, and where in it taught tokens stand."""

    ids: list[int]
    taught: list[range]
    pictures: int
    """How many of its example's, from the first, it is about."""


def sizes_of(example: Example, picture: bool) -> Sizes:
    """Sizes of an example's pictures, which need not be loaded; none if it is to have none."""
    if not picture:
        return []
    places = sum(turn.question.count(PICTURE) for turn in example.turns)
    known = example.sizes or (None,) * max(1, places)
    return [None if size is None else Size(*size) for size in known]


@dataclass(frozen=True)
class Collator:
    """Make batches for one model.

    Attributes:
        reader: of the model.
        answer: the tokens of every answer.
        style: how questions are put; ``answer`` belongs to it.
        image_fit: what becomes of pictures that are not square (``Reader.pixels``).
        sharing_fault: why questions must not share tokens, if they must not; then each has a row of
            its own.
        row_tokens: questions that share tokens do so up to rows of this length (default:
            ``max_length``).
    """

    reader: Reader
    answer: Answers
    style: PromptStyle = LLAVA
    image_fit: str = "crop"
    sharing_fault: str | None = None
    row_tokens: int | None = None

    @classmethod
    def of(
        cls,
        reader: Reader,
        image_fit: str = "crop",
        prompt: str = LLAVA.name,
        max_picture_tokens: int | None = None,
        described: Described | None = None,
    ) -> Collator:
        """The one for a base's reader.

        Args:
            reader: of the base.
            image_fit: see ``Collator``.
            prompt: its name.
            max_picture_tokens: no picture takes more; larger ones are shrunk. For bases to which
                pictures of different sizes are different numbers of tokens.
            described: what the questions are, if they are of a set with wordings of its own.

        Raises:
            UserError: there is no such prompt style or image fit, the tokenizer has no single
                tokens for letters where that style has them, or pictures cannot take so few tokens.
        """
        if prompt not in PROMPTS:
            raise UserError(f"unknown prompt {prompt!r}: choose from {', '.join(PROMPTS)}")
        if image_fit not in IMAGE_FITS:
            raise UserError(f"unknown image fit {image_fit!r}: choose from {IMAGE_FITS}")
        if max_picture_tokens is not None and max_picture_tokens < 1:
            raise UserError(f"--max-picture-tokens must be at least 1, got {max_picture_tokens}")
        if max_picture_tokens is not None:
            if not isinstance(reader, SizedReader):
                raise UserError(EQUAL.format(max_picture_tokens))
            reader = reader.capped(max_picture_tokens)
        style = style_of(described or Described(), prompt)
        fault = family_of(reader.config).sharing_fault(reader.config)
        if getattr(style, "plain", False):
            reader = cast(Reader, PlainReader(reader))
        if isinstance(style, LabelStyle):
            from vlmoe.tasks.labels import LabelCollator, label_tokens  # which is made of this one

            return LabelCollator(reader, label_tokens(reader, style), style, image_fit, fault)
        return cls(reader, answer_tokens(reader, style), style, image_fit, fault)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The reader's."""
        return self.reader.tokenizer

    @property
    def max_length(self) -> int:
        """Longest sequence the model takes, pictures included."""
        return longest(self.reader.config)

    @property
    def letter_ids(self) -> tuple[int, ...]:
        """Token of each answer letter in the place where it is scored."""
        return self.answer.letters

    def training(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch with answers. N questions, A = ``len(self.answer)`` tokens of an answer.

        Returns:
            The rows of ``tree.pack``; ``labels`` (N, A), the tokens of each answer; ``read_at`` (N,
            A), where in the flattened rows the states stand that predict them; and, if any
            example has a picture, every picture once as the base takes it (``Reader.pixels``), and
            ``image_at``, ``feature_of`` and ``picture_uses`` (``Pictures.placed``). Where the base
            has positions of several axes, ``position_ids`` are (axes, rows, S).

        Raises:
            UserError: an example is unlabelled, has more options than letters, or is too long.
        """
        batch = self._taught(examples)
        shape = len(examples), len(self.answer)
        return batch | {name: batch[name].view(shape) for name in ("labels", "read_at")}

    def rows(self, example: Example, sizes: Sizes) -> list[Row]:
        """The sequences of an example with its answer, and what of them is taught.

        Args:
            example: with an answer.
            sizes: of its pictures.
        """
        prompt = self.prompt_ids(example, sizes)
        ids = [*prompt, *self._answer_ids(example)]
        return [Row(ids, [range(len(prompt), len(ids))], len(sizes))]

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
            Where sharing is exact as ``scoring``, with ``rows_at`` in the place of ``read_at``
            (``models.decode``). Else ``input_ids``, ``attention_mask`` (N, S), padded on the left,
            ``position_ids`` (N, S) or (axes, N, S); of pictures what ``training`` returns.
        """
        rows = [self._prompt_ids(example) for example in examples]
        if self.sharing_fault is None and keeps_all(self.reader.config):
            batch, paths = self._pack(rows, examples, room)
            width = max(map(len, paths))
            at = [[-1] * (width - len(path)) + path for path in paths]
            return {**batch, ROWS_AT: torch.tensor(at)}
        self._check_lengths(rows, examples, [room] * len(rows))
        return self._in_rows(rows, Shown(self.reader, [example.images for example in examples]))

    def talking(
        self,
        images: Image.Image | Sequence[Image.Image] | None,
        turns: Sequence[Turn],
        room: int,
        places: Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """A batch of one: a conversation about pictures, up to the last question's answer.

        Args:
            images: a picture, several, or None to talk without one.
            turns: the questions with their answers; the last one is to be answered.
            room: tokens that must fit behind it.
            places: how many pictures stand in front of each question; None: all of them in front
                of the first.

        Raises:
            UserError: the conversation is too long for the model.
        """
        pictures = [images] if isinstance(images, Image.Image) else [*(images or ())]
        before = places if places is not None else [len(pictures), *[0] * (len(turns) - 1)]
        assert sum(before) == len(pictures), (before, len(pictures))
        turns = [
            replace(turn, question=PICTURE * count + turn.question)
            for turn, count in zip(turns, before, strict=True)
        ]
        shown = Shown(self.reader, [pictures])
        row = self.reader.render(turns, shown.sizes[0])
        if len(row) + room > self.max_length:
            raise UserError(
                f"the conversation takes {len(row)} tokens and its answer up to {room}, the model "
                f"at most {self.max_length}: begin a new one, or ask for a shorter answer"
            )
        return self._in_rows([row], shown)

    def options(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """As ``scoring``, with the text of every option in the place of its letter.

        Returns:
            ``scoring``'s batch, and ``option_ids``, ``option_mask`` (N, options, L): each text's
            tokens, ended by padding, the rows filled with empty ones where there are fewer options.
            ``read_at`` has their shape too: where the states stand that predict the tokens.
            ``option_at`` (K,): where all K of them stand, in these when flattened.
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
        option_ids = torch.full(shape, self.tokenizer.pad_token_id)
        option_mask, read_at = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        path = iter(paths)
        for row, ids_of_row in enumerate(texts):
            for option, ids in enumerate(ids_of_row):
                there = (row, option, slice(len(ids)))
                option_ids[there] = torch.tensor(ids)
                option_mask[there] = 1
                read_at[there] = torch.tensor(next(path)[-len(ids) :])
        option_at = option_mask.flatten().nonzero().flatten()
        more = {"option_ids": option_ids, "option_mask": option_mask, "read_at": read_at,
                "option_at": option_at}  # fmt: skip
        return {**batch, **more}

    def count(self, example: Example) -> int:
        """Tokens that are taught of an example with its pictures."""
        rows = self.rows(example, [size_of(picture) for picture in example.images])
        return sum(len(part) for row in rows for part in row.taught)

    def length(self, example: Example, *, picture: bool) -> int:
        """Tokens of an example with its answer. Its picture counts, but need not be loaded.

        Of a picture whose size is not known (``Example.size``), as many as there can be.
        """
        return len(self.prompt_ids(example, sizes_of(example, picture))) + len(self.answer)

    def cuts(self, example: Example, *, picture: bool) -> int:
        """Turns at its end that an example is trained without: none, it has one."""
        return 0

    def prompt_ids(self, example: Example, sizes: Sizes) -> list[int]:
        """The prompt's tokens, pictures of these sizes among them."""
        if len(example.choices) > len(self.letter_ids):
            raise UserError(
                f"example {example.id} has {len(example.choices)} options, this model's "
                f"tokenizer has single tokens for {len(self.letter_ids)} letters only "
                f"({LETTERS[: len(self.letter_ids)]})"
            )
        return self.reader.render([self.style.turn(example, picture=bool(sizes))], sizes)

    def _prompt_ids(self, example: Example) -> list[int]:
        return self.prompt_ids(example, [size_of(picture) for picture in example.images])

    def _answer_ids(self, example: Example) -> Sequence[int]:
        """The answer's tokens with its end."""
        return self.answer(example.answer)

    def _taught(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The batch of ``training`` with ``labels`` and ``read_at`` (K,), of all taught tokens."""
        rows: list[Row] = []
        images = []
        owners = []
        for example in examples:
            if not example.labelled:
                raise UserError(f"example {example.id} has no answer and cannot be trained on")
            for row in self.rows(example, [size_of(picture) for picture in example.images]):
                rows.append(row)
                owners.append(example)
                images.append(example.images[: row.pictures])
        batch, paths = self._pack([row.ids for row in rows], owners, images=images)
        labels, read_at = [], []
        for row, path in zip(rows, paths, strict=True):
            for part in row.taught:
                labels += row.ids[part.start : part.stop]
                read_at += path[part.start - 1 : part.stop - 1]
        return {**batch, "labels": torch.tensor(labels), "read_at": torch.tensor(read_at)}

    def _option_ids(self, example: Example) -> list[list[int]]:
        """The tokens of each option's text behind the prompt and the answer's lead."""
        turns = [Turn(self.style.ask("Which?", ("This.", "That.")))]
        start = len(self.reader.render(turns)) + len(self.answer.lead)
        texts = [f"{self.style.lead}{choice.strip()}" for choice in example.choices]
        # Without the end of the answer.
        return [self.reader.render(turns, answer=text)[start:-1] for text in texts]

    def _pack(
        self,
        rows: list[list[int]],
        examples: Sequence[Example],
        room: int = 0,
        images: Sequence[Sequence[Image.Image]] | None = None,
    ) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
        """The batch of ``training`` without labels, and where each row's tokens stand in it.

        ``images`` are those of each row, where it has not all of its example's.
        """
        self._check_lengths(rows, examples, [room] * len(rows))
        shown = Shown(self.reader, images or [example.images for example in examples])
        # Without a picture it is the question that different orders of options have in common, and
        # its first line (a passage, a premise) that different questions may have.
        keys: list[Hashable] = [
            tuple(which) or example.question.partition("\n")[0]
            for example, which in zip(examples, shown.which, strict=True)
        ]
        if self.sharing_fault is not None:
            keys = [(key, number) for number, key in enumerate(keys)]
        packed = pack(
            shown.marked(rows),
            keys,
            pad=self.tokenizer.pad_token_id,
            budget=self.row_tokens or self.max_length,
        )
        batch = self._with_pictures(packed.tensors, shown)
        if (positions := self._positions(rows, shown, packed.paths, batch)) is not None:
            batch["position_ids"] = positions
        return batch, packed.paths

    def _in_rows(self, rows: list[list[int]], shown: Shown) -> dict[str, torch.Tensor]:
        """A row for each sequence, padded on the left."""
        width = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        marked = shown.marked(rows)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in marked])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        batch = self._with_pictures({"input_ids": ids, "attention_mask": mask}, shown)
        paths = [list(range((at + 1) * width - len(row), (at + 1) * width))
                 for at, row in enumerate(rows)]  # fmt: skip
        positions = self._positions(rows, shown, paths, batch)
        if positions is None:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
        return {**batch, "position_ids": positions}

    def _positions(
        self,
        rows: list[list[int]],
        shown: Shown,
        paths: list[list[int]],
        batch: dict[str, torch.Tensor],
    ) -> torch.Tensor | None:
        """(axes, *rows) if the base has positions of its own: each sequence's, along its path."""
        placed: torch.Tensor | None = None
        shape = batch["input_ids"].shape
        for row, sizes, path in zip(rows, shown.sizes, paths, strict=True):
            own = self.reader.positions(row, sizes)
            if own is None:
                return None
            if placed is None:
                placed = torch.zeros(len(own), shape.numel(), dtype=torch.long)
            placed[:, path] = own
        return None if placed is None else placed.view(-1, *shape)

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

    def _with_pictures(
        self, tensors: dict[str, torch.Tensor], shown: Shown
    ) -> dict[str, torch.Tensor]:
        batch = shown.placed(tensors)
        if not shown.pictures:
            return batch
        return with_pixels(batch, self.reader.pixels(shown.pictures, self.image_fit))
