"""One picture, one question, some options -> an answer. Evaluation and demo both use this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn

from vlmoe.data.collator import Collator
from vlmoe.data.example import LETTERS, UNLABELLED, Example, fault
from vlmoe.errors import UserError


@dataclass(frozen=True)
class Prediction:
    """What the model chose.

    Attributes:
        choice: index of the option with the highest probability (the first of equals).
        probabilities: of each option's letter, normalised over the options there are.
    """

    choice: int
    probabilities: tuple[float, ...]

    @property
    def letter(self) -> str:
        return LETTERS[self.choice]


class Predictor:
    """Scores options by the logits of their letters, one forward pass for a whole batch.

    Args:
        model: LLaVA, adapted or not; it stays in the mode it is found in between calls.
        collator: made for that model.
    """

    def __init__(self, model: nn.Module, collator: Collator):
        self.model = model
        self.collator = collator

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
        return self.choose_batch(
            self.collator.scoring(examples), [len(e.choices) for e in examples]
        )

    @torch.inference_mode()
    def choose_batch(
        self, batch: dict[str, torch.Tensor], options: Sequence[int]
    ) -> list[Prediction]:
        """Answer a collated batch (see ``Collator.scoring``) whose rows have so many options."""
        device = next(self.model.parameters()).device
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        was_training = self.model.training
        self.model.eval()
        try:
            logits = self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
        finally:
            self.model.train(was_training)
        letters = logits[:, list(self.collator.letter_ids)].cpu()
        predictions = []
        for row, count in zip(letters, options, strict=True):
            probabilities = row[:count].double().softmax(-1)
            predictions.append(
                Prediction(int(probabilities.argmax()), tuple(probabilities.tolist()))
            )
        return predictions
