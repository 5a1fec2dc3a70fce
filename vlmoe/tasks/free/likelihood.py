"""How likely the right answer is to the model, whatever it says itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch

from vlmoe.data.example import Example
from vlmoe.finite import NO_NUMBERS
from vlmoe.models.forward import head, states_at
from vlmoe.tasks.conversation import ConversationCollator
from vlmoe.tasks.predict import Prediction, Predictor
from vlmoe.tasks.readings import LOGITS_AT_ONCE


class ReferencePredictor(Predictor):
    """The mean log-likelihood of a token of the first reference, its end included.

    It stands in ``Prediction.scores``, alone; nothing is chosen.
    """

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        return self._batch

    @property
    def shares(self) -> bool:
        """One reference is one sequence."""
        return False

    def _batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        collator = replace(cast(ConversationCollator, self.collator), train_on="last")
        shown = [_with_reference(example) for example in examples]
        batch = collator.training(shown)
        counts = [collator.count(example) for example in shown]
        return {**batch, "counts": torch.tensor(counts)}

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        states = states_at(self.model, batch).split(LOGITS_AT_ONCE)
        ids, to_logits = batch["labels"].split(LOGITS_AT_ONCE), head(self.model)
        log_K = torch.cat(
            [
                to_logits(some).double().log_softmax(-1).gather(-1, these[:, None]).squeeze(-1)
                for some, these in zip(states, ids, strict=True)
            ]
        ).cpu()
        found = []
        for part in log_K.split(batch["counts"].tolist()):
            sound = bool(part.isfinite().all())
            found.append(
                Prediction(None, scores=(float(part.mean()),))
                if sound
                else Prediction(None, fault=NO_NUMBERS)
            )
        return found


def _with_reference(example: Example) -> Example:
    last = replace(example.turns[-1], answer=example.references[0])
    return replace(example, turns=(*example.turns[:-1], last))
