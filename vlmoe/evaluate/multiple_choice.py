"""Score a split of multiple-choice questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vlmoe.data.collator import Collator
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.predict import Prediction, Predictor


@dataclass(frozen=True)
class Scored:
    """One question and what was chosen. The example is kept without its picture."""

    example: Example
    prediction: Prediction

    @property
    def correct(self) -> bool | None:
        """Whether the chosen option says what the right one says (options can repeat).

        None if the question has no answer to compare with.
        """
        if self.example.answer == UNLABELLED:
            return None
        return self._says(self.prediction.choice) == self._says(self.example.answer)

    @property
    def chance(self) -> float:
        """Probability of being correct by picking an option at random."""
        right = self._says(self.example.answer)
        count = len(self.example.choices)
        return sum(self._says(choice) == right for choice in range(count)) / count

    def _says(self, choice: int) -> str:
        return self.example.choices[choice].strip().casefold()


def score(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    blank_images: bool = False,
    workers: int = 0,
    description: str = "score",
) -> list[Scored]:
    """Answer every example once, in order.

    Args:
        predictor: the model.
        examples: the questions.
        batch_size: questions in one forward pass; it does not change the answers.
        blank_images: show a grey picture in place of each (does the model look at all?).
        workers: processes that decode pictures ahead of the model.
        description: in front of the progress bar.
    """
    loader = DataLoader(
        _Questions(examples, blank_images),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_Scoring(predictor.collator),
    )
    scored: list[Scored] = []
    with tqdm(total=len(examples), desc=description, unit="question", disable=None) as bar:
        for batch, questions in loader:
            options = [len(example.choices) for example in questions]
            predictions = predictor.choose_batch(batch, options)
            scored += map(Scored, questions, predictions)
            bar.update(len(questions))
    return scored


class _Questions(torch.utils.data.Dataset[Example]):
    def __init__(self, examples: Sequence[Example], blank_images: bool):
        self.examples = examples
        self.blank_images = blank_images

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        return example.without_picture() if self.blank_images else example


@dataclass(frozen=True)
class _Scoring:
    """Collates in the worker, and sends the questions on without their pictures."""

    collator: Collator

    def __call__(self, examples: list[Example]):
        return self.collator.scoring(examples), [replace(e, image=None) for e in examples]
