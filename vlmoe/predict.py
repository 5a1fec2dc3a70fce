"""One picture, one question, some options -> an answer. Evaluation and demo both use this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from vlmoe.data.collator import Collator
from vlmoe.data.example import LETTERS, UNLABELLED, Example, fault
from vlmoe.errors import UserError
from vlmoe.models.shared import logits_at


@dataclass(frozen=True)
class Prediction:
    """What the model chose, and what it was read off: one of the last three.

    Attributes:
        choice: index of the chosen option (the first of equals), or None if the model's words
            name none.
        probabilities: of each option's letter, normalised over the options there are.
        scores: mean log-likelihood of a token of each option's text.
        text: what the model said.
    """

    choice: int | None
    probabilities: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    text: str | None = None

    @property
    def letter(self) -> str:
        """The chosen option's letter. Raises ``ValueError`` if none was chosen."""
        if self.choice is None:
            raise ValueError(f"no option was chosen by {self.text!r}")
        return LETTERS[self.choice]


class Predictor:
    """Scores options by the logits of their letters, one forward pass for a whole batch.

    Subclasses (``vlmoe.evaluate.scoring``) read the answer off the model in other ways.

    Args:
        model: LLaVA, adapted or not; it stays in the mode it is found in between calls.
        collator: made for that model.
    """

    def __init__(self, model: nn.Module, collator: Collator):
        self.model = model
        self.collator = collator

    @property
    def shares(self) -> bool:
        """Whether the orders of one question's options cost little more than one of them."""
        return self.collator.sharing_fault is None

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        """Makes the batches that ``choose_batch`` takes; it holds no model."""
        return self.collator.scoring

    def choose(
        self, image: Image.Image | None, question: str, choices: Sequence[str]
    ) -> Prediction:
        """Answer one question. Raises ``UserError`` on an empty question or too few options."""
        wrong = fault(question, tuple(choices), UNLABELLED)
        if wrong:
            raise UserError(wrong)
        example = Example("question", image, question, tuple(choices), UNLABELLED)
        return self.choose_all([example])[0]

    def choose_all(self, examples: Sequence[Example]) -> list[Prediction]:
        """Answer a batch of examples, in their order."""
        return self.choose_batch(self.collate(examples), examples)

    @torch.inference_mode()
    def choose_batch(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        """Answer a batch that ``collate`` made of these examples; their pictures are not needed."""
        device = next(self.model.parameters()).device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with _evaluating(self.model):
            return self._answer(batch, examples)

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        letters = logits_at(self.model, batch)[:, list(self.collator.letter_ids)].float().cpu()
        predictions = []
        for row, example in zip(letters, examples, strict=True):
            probabilities = row[: len(example.choices)].double().softmax(-1)
            predictions.append(
                Prediction(int(probabilities.argmax()), tuple(probabilities.tolist()))
            )
        return predictions


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
