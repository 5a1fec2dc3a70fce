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
        log_K, best_K = self._tokens(batch)
        counts = batch["counts"].tolist()
        return [
            Prediction(None, scores=self._scores(part, best, ids))
            if part.isfinite().all()
            else Prediction(None, fault=NO_NUMBERS)
            for part, best, ids in zip(
                log_K.split(counts),
                best_K.split(counts),
                batch["labels"].cpu().split(counts),
                strict=True,
            )
        ]

    def _tokens(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all references' tokens the log-likelihoods, and which would be said there."""
        states = states_at(self.model, batch).split(LOGITS_AT_ONCE)
        ids, to_logits = batch["labels"].split(LOGITS_AT_ONCE), head(self.model)
        logs, best = [], []
        for some, these in zip(states, ids, strict=True):
            logits = to_logits(some)
            logs.append(logits.double().log_softmax(-1).gather(-1, these[:, None]).squeeze(-1))
            best.append(logits.argmax(-1))
        return torch.cat(logs).cpu(), torch.cat(best).cpu()

    def _scores(
        self, logs: torch.Tensor, best: torch.Tensor, ids: torch.Tensor
    ) -> tuple[float, ...]:
        return (float(logs.mean()),)


class ContinuationPredictor(ReferencePredictor):
    """Of the first reference, its end left out, the log-likelihood, and whether it would be said.

    They stand in ``Prediction.scores``, the second as 0 or 1: as evaluation kits ask for them.
    """

    def _scores(
        self, logs: torch.Tensor, best: torch.Tensor, ids: torch.Tensor
    ) -> tuple[float, ...]:
        count = len(ids) - (int(ids[-1]) in self.collator.reader.ends)
        return float(logs[:count].sum()), float((best[:count] == ids[:count]).all())


def _with_reference(example: Example) -> Example:
    last = replace(example.turns[-1], answer=example.references[0])
    return replace(example, turns=(*example.turns[:-1], last))
