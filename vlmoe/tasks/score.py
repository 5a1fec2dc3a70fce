"""Score a split of multiple-choice questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data.lazy import Lazy
from vlmoe.data.mix import picture_keys
from vlmoe.errors import UserError
from vlmoe.finite import NO_NUMBERS, NotFinite
from vlmoe.tasks.free.scores import exact_match
from vlmoe.tasks.predict import Prediction, Predictor

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scored:
    """One question and what was chosen. The example is kept without its picture.

    Attributes:
        example: as it was shown.
        prediction: for that order of options.
        rotations: what was chosen in every order of ``circular``, the first one included, as
            indices into ``example.choices``; empty if the question was asked only once.
        measures: scores of an answer in words, by name.
    """

    example: Example
    prediction: Prediction
    rotations: tuple[int | None, ...] = ()
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def correct(self) -> bool | None:
        """Whether the chosen option says what the right one says (options can repeat).

        Of an answer in words, whether it is one of the right ones (``exact_match``). None if the
        question has no answer to compare with.
        """
        if self.example.is_free:
            if not self.example.labelled:
                return None
            return exact_match(self.prediction.text or "", self.example.references) == 1
        return self._is_right(self.prediction.choice)

    @property
    def correct_circular(self) -> bool | None:
        """Whether it was correct in every rotation; None as for ``correct``."""
        if self.example.answer == UNLABELLED:
            return None
        return all(self._is_right(choice) for choice in self.rotations)

    @property
    def unanswered(self) -> str | None:
        """Why the question has no answer, which counts as a wrong one; None if it has."""
        return self.prediction.fault

    @property
    def chance(self) -> float:
        """Probability of being correct by picking an option at random; of words it is none."""
        if self.example.is_free:
            return 0.0
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
    """Answer every example, in order; one that cannot be answered has a ``fault`` that says why.

    Such are a picture that fails to decode, a question that is too long for the model, and logits
    that are no numbers.

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

    def answers(batches: list[list[int]], bar: tqdm) -> dict[int, Scored]:
        if not batches:
            return {}
        loader = DataLoader(
            _Questions(examples, blank_images, circular),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_Collate(predictor.collate, None if predictor.shares else batch_size),
            generator=torch.Generator(),  # else it draws from the generator that dropout uses
        )
        found: dict[int, Scored] = {}
        for rows, (questions, parts) in zip(batches, loader, strict=True):
            predictions = chain.from_iterable(
                predictor.choose_batch(batch, shown, False) for batch, shown in parts
            )
            for row, question in zip(rows, questions, strict=True):
                found[row] = _gather(question, predictions, circular)
            bar.update(sum(row not in known for row in rows))
            known.update(rows)
        return found

    order = _together(examples)
    known: set[int] = set()  # that the bar has counted
    with tqdm(total=len(examples), desc=description, unit="question", disable=None) as bar:
        found = answers(list(_batches(order, batch_size)), bar)
        # What is no number spreads over its batch. If some are asked alone, and still nothing has
        # an answer, it is the model's.
        spoilt = [row for row, item in found.items() if item.unanswered == NO_NUMBERS]
        if batch_size > 1:
            found |= answers([[row] for row in spoilt[:batch_size]], bar)
            if not all(item.unanswered for item in found.values()):
                found |= answers([[row] for row in spoilt[batch_size:]], bar)
    return [found[row] for row in range(len(examples))]


def check_sound(scored: Sequence[Scored]) -> None:
    """Refuse what a model without numbers said: it is wrong about nothing, it says nothing.

    Raises:
        NotFinite: no question was answered, and not for its own fault.
    """
    faults = [item.unanswered for item in scored]
    if faults and NO_NUMBERS in faults and all(faults):
        raise NotFinite(
            f"{NO_NUMBERS} at each of {faults.count(NO_NUMBERS)} questions: the weights are "
            "broken, or too large for the dtype (take another --dtype)"
        )


@dataclass(frozen=True)
class _Question:
    """One question as it was shown, without its picture.

    Attributes:
        orders: of its options.
        fault: why it could not be put to the model.
    """

    orders: list[Example]
    fault: str | None = None


def _gather(question: _Question, predictions: Iterator[Prediction], circular: bool) -> Scored:
    """One question from the next answers, one to every order of its options."""
    shown, count = question.orders, len(question.orders)
    if question.fault:
        answers = [Prediction(None, fault=question.fault)] * count
    else:
        answers = [next(predictions) for _ in shown]
    fault = next((answer.fault for answer in answers if answer.fault), None)
    first = Prediction(None, fault=fault) if fault else answers[0]
    if not circular or shown[0].is_free:
        return Scored(shown[0], first)
    chosen = tuple(
        None if (choice := answer.choice) is None else (choice + shift) % count
        for shift, answer in enumerate(answers)
    )
    return Scored(shown[0], first, chosen)


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
class _Questions(torch.utils.data.Dataset[_Question]):
    """Each example as it is to be shown: once, or in every order of its options."""

    examples: Sequence[Example]
    blank_images: bool
    circular: bool

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> _Question:
        fault = None
        try:
            example = self.examples[index]
            if self.blank_images:
                example = example.without_picture()
        except UserError as error:
            if not isinstance(self.examples, Lazy):
                raise
            example, fault = self.examples.text(index), str(error)
        shifts = len(example.choices) if self.circular and not example.is_free else 1
        return _Question([rotated(example, shift) for shift in range(shifts)], fault)


@dataclass(frozen=True)
class _Collate:
    """Collates in the worker, and sends the questions on without their pictures.

    Attributes:
        collate: makes a batch.
        rows: in one batch at most; None: as they come.
    """

    collate: Callable[[Sequence[Example]], Batch]
    rows: int | None

    def __call__(
        self, questions: list[_Question]
    ) -> tuple[list[_Question], list[tuple[Batch, list[Example]]]]:
        try:
            parts = self._parts(questions)
        except UserError:  # one of them does not fit the model: which?
            questions = [self._tried(question) for question in questions]
            parts = self._parts(questions)
        return [replace(one, orders=_blind(one.orders)) for one in questions], parts

    def _parts(self, questions: Sequence[_Question]) -> list[tuple[Batch, list[Example]]]:
        shown = [example for one in questions if not one.fault for example in one.orders]
        size = self.rows or max(1, len(shown))
        parts = [shown[at : at + size] for at in range(0, len(shown), size)]
        return [(self.collate(part), _blind(part)) for part in parts]

    def _tried(self, question: _Question) -> _Question:
        try:
            self._parts([question])
        except UserError as error:
            return replace(question, fault=str(error))
        return question


def _blind(examples: Sequence[Example]) -> list[Example]:
    return [example.blind() for example in examples]
