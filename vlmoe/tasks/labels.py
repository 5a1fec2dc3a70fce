"""Questions that have the same few answers in words: their tensors, and how an answer is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlmoe.data.example import Example
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.models.family import Reader
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Prediction
from vlmoe.tasks.readings import GeneratePredictor
from vlmoe.tasks.wordings import LabelStyle


@dataclass(frozen=True)
class LabelTokens:
    """The tokens of every label's answer, the end included.

    Attributes:
        answers: of each label; none is another one's beginning, since each has its end.
    """

    answers: tuple[tuple[int, ...], ...]

    @property
    def lead(self) -> tuple[int, ...]:
        """Nothing stands before an answer that is not the answer's own."""
        return ()

    @property
    def letters(self) -> tuple[int, ...]:
        """The first token of each; they may be equal (``The sentence ...``)."""
        return tuple(answer[0] for answer in self.answers)

    def __len__(self) -> int:
        """Tokens of the longest."""
        return max(map(len, self.answers))

    def __call__(self, option: int) -> list[int]:
        """The answer that says a label."""
        return [*self.answers[option]]


def label_tokens(reader: Reader, style: LabelStyle) -> LabelTokens:
    """Read the answers' tokens off whole conversations with them.

    Raises:
        UserError: an answer changes the prompt's tokens, or two labels are the same tokens.
    """
    turns = [Turn(style.ask("Which?", ()))]
    prompt = reader.render(turns)
    answers = []
    for said in style.says:
        whole = reader.render(turns, answer=said)
        if whole[: len(prompt)] != prompt or len(whole) < len(prompt) + 2:
            raise UserError(
                f"this tokenizer joins the prompt's end with the answer {said!r}, so that "
                "it cannot be scored: take --prompt letters"
            )
        answers.append(tuple(whole[len(prompt) :]))
    if len(set(answers)) < len(answers):
        raise UserError(
            "to this tokenizer two of the answers are the same tokens: take --prompt letters"
        )
    return LabelTokens(tuple(answers))


@dataclass(frozen=True)
class LabelCollator(Collator):
    """A ``Collator`` for answers of unequal length; its ``style`` is a ``LabelStyle``."""

    def training(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Batch with answers, each with its end; K tokens of them in all.

        Returns:
            As ``Collator.training``, but ``labels`` and ``read_at`` are (K,).

        Raises:
            UserError: an example is unlabelled or too long.
        """
        return self._taught(examples)

    def _answer_ids(self, example: Example) -> Sequence[int]:
        assert isinstance(self.style, LabelStyle)
        return self.answer(self.style.taught(example))

    def _option_ids(self, example: Example) -> list[list[int]]:
        """The tokens of each label's answer, without their end."""
        return [list(answer[:-1]) for answer in self.answer.answers]  # type: ignore[attr-defined]


class LabelGeneratePredictor(GeneratePredictor):
    """Lets the model speak, and looks for the one answer that it said."""

    def parse(self, text: str, example: Example) -> int | None:
        """See ``parse_label``."""
        assert isinstance(self.collator.style, LabelStyle)
        return parse_label(text, self.collator.style.says)


def parse_label(text: str, says: Sequence[str]) -> int | None:
    """Which of the answers is in a text, if exactly one is; case and a last period aside.

    An answer that is a part of a longer one there (``equivalent`` in ``not equivalent``) is not.
    """
    left = text.casefold()
    found = []
    for label in sorted(range(len(says)), key=lambda at: -len(says[at])):
        wanted = says[label].casefold().rstrip(".")
        if wanted in left:
            found.append(label)
            left = left.replace(wanted, "\0")
    return found[0] if len(found) == 1 else None


def number_of(prediction: Prediction, labels: Sequence[str]) -> float | None:
    """The number that was said, where labels are numbers: their mean, weighed by likelihood.

    Of what was said in words it is the label's own. None where there is no answer.
    """
    if prediction.choice is None:
        return None
    weights = torch.tensor(prediction.probabilities or (), dtype=torch.float64)
    if prediction.scores:
        weights = torch.tensor(prediction.scores, dtype=torch.float64).softmax(-1)
    if not len(weights):
        return float(labels[prediction.choice])
    numbers = torch.tensor([float(label) for label in labels], dtype=torch.float64)
    return round(float(weights @ numbers), 8)
