"""Score a split of multiple-choice questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data.mix import picture_keys
from vlmoe.tasks.predict import Prediction, Predictor


@dataclass(frozen=True)
class Scored:
    """One question and what was chosen. The example is kept without its picture.

    Attributes:
        example: as it was shown.
        prediction: for that order of options.
        rotations: what was chosen in every order of ``circular``, the first one included, as
            indices into ``example.choices``; empty if the question was asked only once.
    """

    example: Example
    prediction: Prediction
    rotations: tuple[int | None, ...] = ()

    @property
    def correct(self) -> bool | None:
        """Whether the chosen option says what the right one says (options can repeat).

        None if the question has no answer to compare with.
        """
        return self._is_right(self.prediction.choice)

    @property
    def correct_circular(self) -> bool | None:
        """Whether it was correct in every rotation; None as for ``correct``."""
        if self.example.answer == UNLABELLED:
            return None
        return all(self._is_right(choice) for choice in self.rotations)

    @property
    def chance(self) -> float:
        """Probability of being correct by picking an option at random."""
        count = len(self.example.choices)
        return sum(bool(self._is_right(choice)) for choice in range(count)) / count

    @property
    def chance_circular(self) -> float:
        """The same for every rotation, picked anew in each."""
        return math.pow(self.chance, len(self.rotations))

    def _is_right(self, choice: int | None) -> bool | None:
        if self.example.answer == UNLABELLED:
            return None
        return choice is not None and self._says(choice) == self._says(self.example.answer)

    def _says(self, choice: int) -> str:
        return self.example.choices[choice].strip().casefold()


def score(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    blank_images: bool = False,
    circular: bool = False,
    workers: int = 0,
    description: str = "score",
) -> list[Scored]:
    """Answer every example, in order.

    Args:
        predictor: the model, and how an answer is read off it.
        examples: the questions.
        batch_size: questions in one forward pass; it does not change the answers. All orders of a
            question's options are in the same one, where they share what precedes them.
        blank_images: show a grey picture in place of each (does the model look at all?).
        circular: ask again with the options in every rotated order (CircularEval of MMBench,
            arXiv 2307.06281).
        workers: processes that decode pictures ahead of the model.
        description: in front of the progress bar.
    """

    order = _together(examples)
    loader = DataLoader(
        _Questions(examples, blank_images, circular),
        batch_sampler=list(_batches(order, batch_size)),
        num_workers=workers,
        collate_fn=_Collate(predictor.collate, None if predictor.shares else batch_size),
        generator=torch.Generator(),  # else it draws from the generator that dropout uses
    )
    found: list[Scored] = []
    with tqdm(total=len(examples), desc=description, unit="question", disable=None) as bar:
        for orders, parts in loader:
            predictions = [p for part in parts for p in predictor.choose_batch(*part)]
            shown = [example for _, part in parts for example in part]
            for count in orders:
                found.append(_gather(shown[:count], predictions[:count], circular))
                shown, predictions = shown[count:], predictions[count:]
            bar.update(len(orders))
    places = {row: at for at, (row, _) in enumerate(order)}
    return [found[places[row]] for row in range(len(examples))]


def _gather(shown: Sequence[Example], predictions: Sequence[Prediction], circular: bool) -> Scored:
    """One question from the answers to every order of its options."""
    if not circular:
        return Scored(shown[0], predictions[0])
    count = len(shown)
    chosen = tuple(
        None if (choice := prediction.choice) is None else (choice + shift) % count
        for shift, prediction in enumerate(predictions)
    )
    return Scored(shown[0], predictions[0], chosen)


def _together(examples: Sequence[Example]) -> list[tuple[int, Hashable]]:
    """The rows with their pictures' keys, questions about one picture after each other."""
    keys = picture_keys(examples)
    first: dict[Hashable, int] = {}
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    rows = sorted(range(len(keys)), key=lambda row: row if keys[row] is None else first[keys[row]])
    return [(row, keys[row]) for row in rows]


def _batches(order: Sequence[tuple[int, Hashable]], size: int) -> Iterator[list[int]]:
    """At most ``size`` rows each; questions about one picture stay together where they fit."""
    batch: list[int] = []
    for key, siblings in groupby(order, key=lambda pair: pair[1]):
        rows = [row for row, _ in siblings]
        if key is not None and len(rows) <= size < len(batch) + len(rows):
            yield batch
            batch = []
        for row in rows:
            if len(batch) == size:
                yield batch
                batch = []
            batch.append(row)
    if batch:
        yield batch


def rotated(example: Example, shift: int) -> Example:
    """The example with its options moved ``shift`` places to the front, around the end."""
    count = len(example.choices)
    choices = example.choices[shift:] + example.choices[:shift]
    answer = example.answer
    return replace(
        example,
        choices=choices,
        answer=answer if answer == UNLABELLED else (answer - shift) % count,
    )


@dataclass(frozen=True)
class _Questions(torch.utils.data.Dataset[list[Example]]):
    """Each example as it is to be shown: once, or in every order of its options."""

    examples: Sequence[Example]
    blank_images: bool
    circular: bool

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> list[Example]:
        example = self.examples[index]
        if self.blank_images:
            example = example.without_picture()
        shifts = len(example.choices) if self.circular else 1
        return [rotated(example, shift) for shift in range(shifts)]


@dataclass(frozen=True)
class _Collate:
    """Collates in the worker, and sends the questions on without their pictures.

    Attributes:
        collate: makes a batch.
        rows: in one batch at most; None: as they come.
    """

    collate: Callable[[Sequence[Example]], dict[str, torch.Tensor]]
    rows: int | None

    def __call__(self, questions: list[list[Example]]):
        shown = [example for orders in questions for example in orders]
        size = self.rows or len(shown)
        parts = [shown[at : at + size] for at in range(0, len(shown), size)]
        return [len(orders) for orders in questions], [
            (self.collate(part), [replace(example, image=None) for example in part])
            for part in parts
        ]
