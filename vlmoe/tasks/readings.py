"""The ways to read an answer off the model: ``letter``, ``option``, ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from vlmoe.choices import MAX_NEW_TOKENS, SCORINGS
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.finite import NO_NUMBERS
from vlmoe.models.forward import embed, head, states_at
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.parse import parse_answer
from vlmoe.tasks.predict import Prediction, Predictor

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
        kept = mask_NOL.bool()
        batch["read_at"] = batch["read_at"][kept]
        states = states_at(self.model, batch).split(LOGITS_AT_ONCE)
        ids = batch["option_ids"][kept].split(LOGITS_AT_ONCE)
        to_logits = head(self.model)
        log_K = [
            to_logits(some).double().log_softmax(-1).gather(-1, these[:, None]).squeeze(-1)
            for some, these in zip(states, ids, strict=True)
        ]
        log_NOL = mask_NOL.double().masked_scatter(kept, torch.cat(log_K))
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
        tokenizer = collator.tokenizer
        self._greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(collator.reader.ends),
            pad_token_id=tokenizer.pad_token_id,
        )

    @property
    def shares(self) -> bool:
        """Only what the vision tower makes of a picture is shared: every row is written on."""
        return False

    @property
    def collate(self) -> Callable[[Sequence[Example]], dict[str, torch.Tensor]]:
        return partial(self.collator.asking, room=self.max_new_tokens)

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        tokenizer = self.collator.tokenizer
        watch = _Watch()
        with _generating_by(self.model, self._greedy):
            said = self.model.generate(  # type: ignore[operator]
                inputs_embeds=embed(self.model, batch),
                attention_mask=batch["attention_mask"],
                logits_processor=LogitsProcessorList([watch]),
            )
        texts = tokenizer.batch_decode(said.cpu(), skip_special_tokens=True)
        return [
            Prediction(parse_answer(text, example.choices), text=text.strip())
            if sound
            else Prediction(None, fault=NO_NUMBERS)
            for text, example, sound in zip(texts, examples, watch.sound(), strict=True)
        ]


class _Watch(LogitsProcessor):
    """Looks at the logits that tokens are chosen by, and leaves them as they are."""

    def __init__(self) -> None:
        self._seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._seen.append(scores.isfinite().all(-1))
        return scores

    def sound(self) -> list[bool]:
        """Of each row, whether all of them were numbers."""
        return torch.stack(self._seen).all(0).tolist()


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
