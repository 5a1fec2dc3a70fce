"""One picture, one question, some options -> an answer. Evaluation and demo both use this.

Also an open question -> an answer token by token, and what the routers did with either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from vlmoe.adapter.routing import LayerRouting, RoutingRecorder, TokenRouting
from vlmoe.data.example import LETTERS, UNLABELLED, Example, fault
from vlmoe.data.image import Source, load_rgb
from vlmoe.errors import UserError
from vlmoe.finite import NO_NUMBERS, NotFinite
from vlmoe.models.family import Patches
from vlmoe.models.forward import followed_by, following, logits_at, next_logits, states_at
from vlmoe.models.transfer import sent
from vlmoe.tasks.collator import Collator


@dataclass(frozen=True)
class Prediction:
    """What the model chose, and what it was read off: one of the last three.

    Attributes:
        choice: index of the chosen option (the first of equals), or None if the model's words
            name none.
        probabilities: of each option's letter, normalised over the options there are.
        scores: mean log-likelihood of a token of each option's text.
        text: what the model said.
        fault: why there is no answer, if there is none; then ``choice`` is None and the others are
            empty.
    """

    choice: int | None
    probabilities: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    text: str | None = None
    fault: str | None = None

    @property
    def letter(self) -> str:
        """The chosen option's letter. Raises ``ValueError`` if none was chosen."""
        if self.choice is None:
            raise ValueError(self.fault or f"no option was chosen by {self.text!r}")
        return LETTERS[self.choice]


@dataclass(frozen=True)
class Said:
    """What the model has said up to now.

    Attributes:
        text: all of it, without the spaces around.
        tokens: the ids it is made of.
        end: empty while it goes on; then ``end`` (it had no more to say), ``length`` or ``time``.
    """

    text: str
    tokens: tuple[int, ...]
    end: str = ""


@dataclass(frozen=True)
class Experts:
    """What one adapter's routers did with a picture, a question and an answer.

    Attributes:
        layers: every token's gates in every adapted layer, in the model's order. The vision
            tower's tokens are in its own order, which ``patches`` knows.
        table: the same as shares of each layer's experts.
        tokens: the language tower's tokens as text.
        picture: which of them are the picture's; empty without one.
        patches: of the picture, as the vision tower got it; None without one.
    """

    layers: list[TokenRouting]
    table: list[LayerRouting]
    tokens: list[str]
    picture: range
    patches: Patches | None

    def leading(self, layer: TokenRouting) -> list[int]:
        """The leading expert of each patch in a layer of the vision tower, row by row."""
        assert self.patches is not None
        leading = layer.leading
        return [leading[token] for token in self.patches.tokens]


class Predictor:
    """Scores options by the logits of their letters, one forward pass for a whole batch.

    Subclasses (``vlmoe.tasks.readings``) read the answer off the model in other ways.

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

    def choose(self, image: Source | None, question: str, choices: Sequence[str]) -> Prediction:
        """Answer one question.

        Args:
            image: a path, a PIL picture, an array (see ``load_rgb``), or None.
            question: without options.
            choices: a list of texts.

        Raises:
            UserError: the picture cannot be used, the question is empty or too long, or the choices
                are no list of two texts or more.
            NotFinite: the model's logits are no numbers.
        """
        return self.choose_all([self.example(image, question, choices)])[0]

    def example(self, image: Source | None, question: str, choices: Sequence[str]) -> Example:
        """One question as an example. Raises ``UserError`` as ``choose`` does."""
        if not isinstance(question, str):
            raise UserError(f"the question is {question!r}, not a text")
        options = _texts(choices)
        wrong = fault(question, options, UNLABELLED)
        if wrong:
            raise UserError(wrong)
        return Example("question", _picture(image), question, options, UNLABELLED)

    def choose_all(self, examples: Sequence[Example]) -> list[Prediction]:
        """Answer a batch of examples, in their order. Raises ``UserError`` as ``choose`` does."""
        return self.choose_batch(self.collate(examples), examples)

    @torch.inference_mode()
    def choose_batch(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example], strict: bool = True
    ) -> list[Prediction]:
        """Answer a batch that ``collate`` made of these examples; their pictures are not needed.

        Args:
            batch: from ``collate``.
            examples: it was made of.
            strict: whether logits that are no numbers are raised (``NotFinite``); else such a
                question's prediction has a ``fault``.
        """
        with _evaluating(self.model):
            found = self._answer(self._moved(batch), examples)
        faults = [prediction.fault for prediction in found if prediction.fault]
        if strict and faults:
            raise NotFinite(faults[0])
        return found

    def stream(
        self,
        batch: dict[str, torch.Tensor],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        seconds: float = math.inf,
    ) -> Iterator[Said]:
        """Answer an open question, token by token.

        Nothing is held between two steps: the model may serve others meanwhile, and a caller who
        wants no more just stops asking.

        Args:
            batch: one row, as ``collator.talking`` makes it.
            max_new_tokens: tokens to say at most.
            temperature: 0 says the likeliest token, more samples from softmax(logits / it).
            seed: of what is sampled; None: torch's own.
            seconds: after which no further token is begun.

        Yields:
            After every token all that was said; the last one has an ``end``.

        Raises:
            NotFinite: the logits are no numbers.
        """
        finish = time.monotonic() + seconds
        reader = self.collator.reader
        inputs, cache, tokens, end = self._moved(batch), None, [], ""
        chance = None
        if seed is not None:
            chance = torch.Generator(inputs["input_ids"].device).manual_seed(seed)
        while not end:
            token, cache = self._next(inputs, cache, temperature, chance)
            inputs = following(inputs, torch.full_like(inputs["input_ids"][:, :1], token))
            if token in reader.ends:
                end = "end"
            else:
                tokens.append(token)
                if len(tokens) >= max_new_tokens:
                    end = "length"
                elif time.monotonic() >= finish:
                    end = "time"
            text = str(reader.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            # A letter of several bytes may have come in half.
            yield Said(text if end else text.rstrip("\ufffd"), tuple(tokens), end)

    @torch.inference_mode()
    def experts(
        self,
        batch: dict[str, torch.Tensor],
        said: Sequence[int] = (),
        adapter_name: str = "default",
    ) -> Experts:
        """What the routers of an adapter, which must be active, do with a question.

        Args:
            batch: one row, as ``collator.talking`` or ``collator.scoring`` makes it.
            said: the tokens of the answer, which follow it.
            adapter_name: whose routers.
        """
        assert len(batch["input_ids"]) == 1, batch["input_ids"].shape
        whole = self._moved(followed_by(batch, torch.tensor([said], dtype=torch.long)))
        ids = whole["input_ids"]
        recorder = RoutingRecorder(self.model, adapter_name)
        with _evaluating(self.model), recorder.record() as recording:
            states_at(self.model, {**whole, "read_at": ids.new_tensor([0])})
        recorder.count(recording)
        reader = self.collator.reader
        at = [place for place, token in enumerate(ids[0].tolist()) if token == reader.image_token]
        return Experts(
            layers=recorder.by_token(recording),
            table=recorder.read(),
            tokens=[
                _readable(piece)
                for piece in reader.tokenizer.convert_ids_to_tokens(ids[0].tolist())
            ],
            picture=range(at[0], at[-1] + 1) if at else range(0),
            patches=reader.patches(batch),
        )

    @torch.inference_mode()
    def _next(
        self,
        inputs: dict[str, torch.Tensor],
        cache: Any,
        temperature: float,
        chance: torch.Generator | None,
    ) -> tuple[int, Any]:
        with _evaluating(self.model):
            found, cache = next_logits(self.model, inputs, cache)
        logits = found[0].double()
        if not logits.isfinite().all():
            raise NotFinite(NO_NUMBERS)
        if temperature > 0:  # the largest is 0 first, so that nothing overflows
            shares = ((logits - logits.max()) / temperature).softmax(-1)
            token = torch.multinomial(shares, 1, generator=chance)
        else:
            token = logits.argmax()
        return int(token), cache

    def _moved(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device = next(self.model.parameters()).device
        return {name: sent(value, device) for name, value in batch.items()}

    def _answer(
        self, batch: dict[str, torch.Tensor], examples: Sequence[Example]
    ) -> list[Prediction]:
        logits = logits_at(self.model, batch)
        ids = sent(torch.tensor(self.collator.letter_ids), logits.device)
        letters = logits.index_select(1, ids).float().cpu()
        predictions = []
        for row, example in zip(letters, examples, strict=True):
            logits = row[: len(example.choices)]
            if not logits.isfinite().all():
                predictions.append(Prediction(None, fault=NO_NUMBERS))
                continue
            probabilities = logits.double().softmax(-1)
            predictions.append(
                Prediction(int(probabilities.argmax()), tuple(probabilities.tolist()))
            )
        return predictions


def _picture(given: Source | None) -> Image.Image | None:
    """RGB and upright; a picture made in memory that is so already is taken as it is."""
    if given is None:
        return None
    if type(given) is Image.Image and given.mode == "RGB" and not given.info:
        return given if 0 not in given.size else load_rgb(given)  # which refuses it
    return load_rgb(given)


def _texts(choices: Sequence[str]) -> tuple[str, ...]:
    """The options. Raises ``UserError`` if they are no list of texts."""
    ordered = isinstance(choices, Iterable) and not isinstance(choices, Mapping | Set | bytes)
    if isinstance(choices, str) or not ordered:
        raise UserError(
            f"the choices are {choices!r}: give a list of texts, such as ['Red.', 'Blue.']"
        )
    options = tuple(choices)
    for number, option in enumerate(options, start=1):
        if not isinstance(option, str):
            raise UserError(f"choice {number} is {option!r}, not a text")
    return options


def _readable(piece: str) -> str:
    """A token as people write it: a space for SentencePiece's mark, a new line for its byte."""
    return piece.replace("\u2581", " ").replace("<0x0A>", "\n")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    # To set every mode takes as long as a small model takes for a token: it is done where it must.
    if not any(module.training for module in model.modules()):
        yield
        return
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
