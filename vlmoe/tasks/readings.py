"""The ways to read an answer off the model: ``letter``, ``option``, ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from vlmoe.choices import MAX_NEW_TOKENS, SCORINGS
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.finite import NO_NUMBERS
from vlmoe.models.decode import begin, only
from vlmoe.models.forward import following, head, next_logits, states_at
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.parse import parse_answer
from vlmoe.tasks.predict import Prediction, Predictor

KEPT = 0.75  # of the rows that are written on: when fewer go on, the others are dropped
LOGITS_AT_ONCE = 256  # of the whole vocabulary in float64, 64 MB


class OptionPredictor(Predictor):
    """Chooses the option whose text is the likeliest answer, by its mean log-likelihood per token.

    All options are branches behind the prompt: picture and prompt go through the model once.
    """

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        return self.collator.options

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        # N questions, O options, L tokens of the longest option; K tokens in all
        mask_NOL = batch["option_mask"]
        at_K = batch["option_at"]
        batch["read_at"] = batch["read_at"].flatten()[at_K]
        states = states_at(self.model, batch).split(LOGITS_AT_ONCE)
        ids = batch["option_ids"].flatten()[at_K].split(LOGITS_AT_ONCE)
        to_logits = head(self.model)
        log_K = [
            to_logits(some).double().log_softmax(-1).gather(-1, these[:, None]).squeeze(-1)
            for some, these in zip(states, ids, strict=True)
        ]
        log_NOL = torch.zeros_like(mask_NOL, dtype=torch.double)
        log_NOL.view(-1).index_copy_(0, at_K, torch.cat(log_K))
        scores_NO = (log_NOL.sum(-1) / mask_NOL.sum(-1)).cpu()
        predictions = []
        for row, example in zip(scores_NO, examples, strict=True):
            scores = row[: len(example.choices)]
            if not scores.isfinite().all():
                predictions.append(Prediction(None, fault=NO_NUMBERS))
                continue
            predictions.append(Prediction(int(scores.argmax()), scores=tuple(scores.tolist())))
        return predictions


class GeneratePredictor(Predictor):
    """Lets the model speak, one likeliest token after the other, and parses what it said.

    What questions begin with alike, a picture above all, goes through the model once, where that is
    exact; rows that have ended are dropped.

    Args:
        model: as for ``Predictor``.
        collator: likewise.
        max_new_tokens: it may say at most.
    """

    def __init__(self, model: nn.Module, collator: Collator, max_new_tokens: int = MAX_NEW_TOKENS):
        super().__init__(model, collator)
        if max_new_tokens >= collator.max_length:
            raise UserError(
                f"an answer of up to {max_new_tokens} tokens leaves no room for a question: the "
                f"model takes at most {collator.max_length} tokens; lower --max-new-tokens"
            )
        self.max_new_tokens = max_new_tokens

    @property
    def shares(self) -> bool:
        """Every order of a question's options is written on by itself."""
        return False

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        return partial(self.collator.asking, room=self.max_new_tokens)

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        tokenizer = self.collator.tokenizer
        said, sound = self._greedy(batch)
        texts = tokenizer.batch_decode(said.cpu(), skip_special_tokens=True)
        return [
            Prediction(self.parse(text, example), text=text.strip())
            if whole
            else Prediction(None, fault=NO_NUMBERS)
            for text, example, whole in zip(texts, examples, sound.tolist(), strict=True)
        ]

    def parse(self, text: str, example: Example) -> int | None:
        """The option that a text names; None if it names none."""
        return parse_answer(text, example.choices) if example.choices else None

    def _greedy(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What each row says (N, T), and whether all the logits it was read off were numbers (N,).

        Transformers' own would fill settings up from the model's, which may sample, search and
        penalize, and would keep positions on the model.
        """
        logits, cache, batch = begin(self.model, batch)
        rows = torch.arange(len(logits), device=logits.device)  # those that are written on
        ends = torch.tensor(sorted(self.collator.reader.ends), device=logits.device)
        said = rows.new_full((len(rows), self.max_new_tokens), self.collator.tokenizer.pad_token_id)
        sound = torch.ones_like(rows, dtype=torch.bool)
        going = sound.clone()
        for at in range(self.max_new_tokens):
            if at:
                batch = following(batch, said[rows, at - 1, None])
                logits, cache = next_logits(self.model, batch, cache)
            token, whole = logits.argmax(-1), logits.isfinite().all(-1)
            sound[rows] &= whole | ~going[rows]
            said[rows, at] = token.where(going[rows], said[rows, at])
            going[rows] &= ~torch.isin(token, ends)
            left = int(going[rows].sum())
            if not left:
                break
            if left <= KEPT * len(rows):
                still = going[rows].nonzero().flatten()
                batch, cache = only(batch, cache, still)
                rows = rows[still]
        return said, sound


def make_predictor(
    scoring: str, model: nn.Module, collator: Collator, max_new_tokens: int = MAX_NEW_TOKENS
) -> Predictor:
    """What answers in the way of that name. Raises ``UserError`` if there is none."""
    if scoring == "letter":
        return Predictor(model, collator)
    if scoring == "option":
        return OptionPredictor(model, collator)
    if scoring == "generate":
        return GeneratePredictor(model, collator, max_new_tokens)
    raise UserError(f"unknown scoring {scoring!r}: choose from {', '.join(SCORINGS)}")
