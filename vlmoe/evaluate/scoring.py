"""The ways to read an answer off the model: ``letter``, ``option``, ``generate``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import DynamicCache, GenerationConfig

from vlmoe.choices import MAX_NEW_TOKENS, SCORINGS
from vlmoe.data.collator import Collator
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.evaluate.parse import parse_answer
from vlmoe.predict import Prediction, Predictor


class OptionPredictor(Predictor):
    """Chooses the option whose text is the likeliest answer, by its mean log-likelihood per token.

    Picture and prompt go through the model once for all options of a question; the options' few
    tokens then continue from its cache.
    """

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        return self.collator.options

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        # N questions, O options, L tokens of the longest option
        ids_NOL, mask_NOL = batch.pop("option_ids"), batch.pop("option_mask")
        asked = self.model(**batch, logits_to_keep=1, use_cache=True)
        columns = [
            self._scores(asked.logits[:, -1:], asked.past_key_values, batch, ids_NL, mask_NL)
            for ids_NL, mask_NL in zip(ids_NOL.unbind(1), mask_NOL.unbind(1), strict=True)
        ]
        predictions = []
        for row, example in zip(torch.stack(columns, 1).cpu(), examples, strict=True):
            scores = row[: len(example.choices)]
            predictions.append(Prediction(int(scores.argmax()), scores=tuple(scores.tolist())))
        return predictions

    def _scores(
        self,
        first: torch.Tensor,
        cache: DynamicCache,
        batch: dict[str, torch.Tensor],
        ids_NL: torch.Tensor,
        mask_NL: torch.Tensor,
    ) -> torch.Tensor:
        """Mean log-likelihoods (N,) of one option of every question, float64.

        Args:
            first: (N, 1, V) logits of the first token, from the prompt.
            cache: the prompt's; it stays as it is.
            batch: of which the prompt's mask is used.
            ids_NL: the options' tokens.
            mask_NL: 0 on padding; a row of zeros (no such option) scores nan.
        """
        logits = first
        if ids_NL.shape[1] > 1:
            mask = torch.cat([batch["attention_mask"], mask_NL[:, :-1]], dim=1)
            rest = self.model(
                input_ids=ids_NL[:, :-1],
                attention_mask=mask,
                past_key_values=_branch(cache),
                use_cache=True,
            )
            logits = torch.cat([first, rest.logits], dim=1)
        log_NLV = logits.double().log_softmax(-1)
        log_NL = log_NLV.gather(-1, ids_NL[..., None]).squeeze(-1)
        return (log_NL * mask_NL).sum(-1) / mask_NL.sum(-1)


class GeneratePredictor(Predictor):
    """Lets the model speak, one likeliest token after the other, and parses what it said.

    Args:
        model, collator: as for ``Predictor``.
        max_new_tokens: it may say at most.
    """

    def __init__(self, model: nn.Module, collator: Collator, max_new_tokens: int = MAX_NEW_TOKENS):
        super().__init__(model, collator)
        self.max_new_tokens = max_new_tokens
        tokenizer = collator.processor.tokenizer
        self._greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        return partial(self.collator.asking, room=self.max_new_tokens)

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        tokenizer = self.collator.processor.tokenizer
        with _generating_by(self.model, self._greedy):
            said = self.model.generate(**batch)  # type: ignore[operator]
        new = said[:, batch["input_ids"].shape[1] :].cpu()
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            Prediction(parse_answer(text, example.choices), text=text.strip())
            for text, example in zip(texts, examples, strict=True)
        ]


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


@contextmanager
def _generating_by(model: nn.Module, settings: GenerationConfig) -> Iterator[None]:
    """Put settings in the place of the model's own, which may sample, search and penalize.

    Settings given to ``generate`` would be filled up from the model's own.
    """
    owner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    kept, owner.generation_config = owner.generation_config, settings
    try:
        yield
    finally:
        owner.generation_config = kept


def _branch(cache: DynamicCache) -> DynamicCache:
    """A cache that grows on its own; what it holds so far is shared, for layers replace tensors."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
