"""Score a split of multiple-choice questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vlmoe.data.example import UNLABELLED, Example
from vlmoe.predict import Prediction, Predictor


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
        batch_size: questions in one forward pass; it does not change the answers.
        blank_images: show a grey picture in place of each (does the model look at all?).
        circular: ask again with the options in every rotated order (CircularEval of MMBench,
            arXiv 2307.06281).
        workers: processes that decode pictures ahead of the model.
        description: in front of the progress bar.
    """

    def ask(rows: Sequence[int], shift: int, text: str) -> list[tuple[Example, Prediction]]:
        questions = _Questions(examples, rows, blank_images, shift)
        return _ask(predictor, questions, batch_size, workers, text)

    scored = [Scored(*asked) for asked in ask(range(len(examples)), 0, description)]
    if not circular:
        return scored
    chosen = [[item.prediction.choice] for item in scored]
    most = max((len(item.example.choices) for item in scored), default=0)
    for shift in range(1, most):
        rows = [at for at, item in enumerate(scored) if len(item.example.choices) > shift]
        asked = ask(rows, shift, f"{description}, rotation {shift}")
        for at, (example, prediction) in zip(rows, asked, strict=True):
            choice = prediction.choice
            if choice is not None:
                choice = (choice + shift) % len(example.choices)
            chosen[at].append(choice)
    return [replace(item, rotations=tuple(row)) for item, row in zip(scored, chosen, strict=True)]


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


def _ask(
    predictor: Predictor, questions: _Questions, batch_size: int, workers: int, description: str
) -> list[tuple[Example, Prediction]]:
    loader = DataLoader(
        questions,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_Collate(predictor.collate),
    )
    answered: list[tuple[Example, Prediction]] = []
    with tqdm(total=len(questions), desc=description, unit="question", disable=None) as bar:
        for batch, examples in loader:
            predictions = predictor.choose_batch(batch, examples)
            answered += zip(examples, predictions, strict=True)
            bar.update(len(examples))
    return answered


@dataclass(frozen=True)
class _Questions(torch.utils.data.Dataset[Example]):
    """The chosen rows of the examples, as they are to be shown."""

    examples: Sequence[Example]
    rows: Sequence[int]
    blank_images: bool
    shift: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[self.rows[index]]
        if self.blank_images:
            example = example.without_picture()
        return rotated(example, self.shift)


@dataclass(frozen=True)
class _Collate:
    """Collates in the worker, and sends the questions on without their pictures."""

    collate: Callable[[Sequence[Example]], dict[str, torch.Tensor]]

    def __call__(self, examples: list[Example]):
        return self.collate(examples), [replace(e, image=None) for e in examples]
