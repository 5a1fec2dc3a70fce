"""What families whose pictures take more or fewer tokens have in common.

A picture's tokens follow from its height and width alone, so a question's length is known before
its picture is read. Every picture goes through the vision tower once; the rows of features that it
makes are laid to its tokens by number (``Pictures.placed``), wherever and how often it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PretrainedConfig, PreTrainedTokenizerBase

from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.causal import EXACT, causal_inputs, check_logits, sharing_fault
from vlmoe.models.chat import Shown, chat_ids, checked, ends_of, load_tokenizer
from vlmoe.models.family import Patches, Size
from vlmoe.models.faults import reading

LONGEST = 100
"""Times as long as wide: longer pictures are squeezed to it. No processor takes any shape."""
EQUAL = (
    "--max-picture-tokens {}: to this base every picture is equally many tokens, or none; "
    "leave it out"
)
_SMALLER = 0.9  # of each side, until a picture takes few enough tokens
_LEAST = 28  # pixels of the longer side, below which nothing is left of a picture


class Runs(NamedTuple):
    """What stands in a picture's place.

    Attributes:
        text: with one of the base's image tokens for each run of them.
        length: of every run.
        parts: of the picture, each equally many tokens to the vision tower, such as tiles.
    """

    text: str
    length: int
    parts: int = 1


@dataclass(frozen=True)
class SizedReader:
    """Conversations and pictures of any size for one checkpoint; families say the rest.

    Attributes:
        config: of the model.
        tokenizer: with a chat template or without (``vlmoe.models.chat``).
        ends: tokens that end an answer.
        processor: of transformers, by PIL; its numbers agree with the config.
        max_picture_tokens: no picture takes more; larger ones are shrunk until they take so few.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    processor: Any
    max_picture_tokens: int | None = None

    # --- what a family says ---

    def runs(self, size: Size) -> Runs:
        """What stands in the place of a picture of that size."""
        raise NotImplementedError

    def encoded(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model takes of these pictures, each once."""
        raise NotImplementedError

    def patches(self, batch: Mapping[str, Tensor]) -> Patches | None:
        """See ``Reader.patches``."""
        raise NotImplementedError

    @property
    def largest(self) -> Sequence[Size]:
        """Sizes of pictures, one of which takes as many tokens as any can."""
        raise NotImplementedError

    @property
    def written(self) -> tuple[str, ...]:
        """What templates may write in a picture's place: one of these."""
        return (self.mark,)

    # --- what all have in common ---

    @cached_property  # asked for every token, and a config is slow to ask
    def image_token(self) -> int:
        """The one that every part of a picture is."""
        return self.config.image_token_id

    @property
    def mark(self) -> str:
        """The same as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token))

    def render(
        self, turns: Sequence[Turn], sizes: Sequence[Size | None] = (), answer: str | None = None
    ) -> list[int]:
        """See ``Reader.render``."""
        runs = [self._runs(size) for size in sizes]
        shown = Shown(self.written, [run.text for run in runs])
        ids = chat_ids(self.tokenizer, turns, self.ends, answer, shown)
        return self._spread(ids, runs)

    def picture_tokens(self, size: Size | None) -> list[int]:
        """See ``Reader.picture_tokens``; of any size: as many as there can be."""
        run = self._runs(size)
        return self._spread(self.tokenizer(run.text, add_special_tokens=False)["input_ids"], [run])

    def pixels(self, pictures: Sequence[Image.Image], fit: str) -> dict[str, Tensor]:
        """See ``Reader.pixels``; a whole picture of any shape is seen, so there is no choice."""
        if fit != "crop":
            raise UserError(
                f"--image-fit {fit}: this base sees whole pictures of any shape, leave it out"
            )
        fitted = []
        for picture in pictures:
            size = self.fitted(Size(picture.height, picture.width))
            same = size == (picture.height, picture.width)
            fitted.append(picture if same else picture.resize(size[::-1], self.processor.resample))
        parts = [self.runs(Size(one.height, one.width)).parts for one in fitted]
        return {**self.encoded(fitted), "picture_parts": torch.tensor(parts)}

    def positions(self, ids: Sequence[int], sizes: Sequence[Size]) -> Tensor | None:
        """None: each token's is the number of those before it."""
        return None

    def capped(self, most: int) -> SizedReader:
        """One whose pictures take ``most`` tokens at most. Raises ``UserError`` if some cannot."""
        reader = replace(self, max_picture_tokens=most)
        for size in (Size(100, 100), *self.largest):
            reader.fitted(size)
        return reader

    def fitted(self, size: Size) -> Size:
        """The size at which a picture is handed to the processor.

        Raises:
            UserError: made small it takes more than ``max_picture_tokens``, too.
        """
        height, width = size
        whole = size = Size(min(height, LONGEST * width), min(width, LONGEST * height))
        scale = 1.0
        while self.max_picture_tokens and self._count(size) > self.max_picture_tokens:
            if max(size) <= _LEAST:
                raise UserError(
                    f"--max-picture-tokens {self.max_picture_tokens}: even a small picture takes "
                    f"{self._count(size)} tokens"
                )
            scale *= _SMALLER
            size = Size(*(max(1, round(scale * side)) for side in whole))
        return size

    def _count(self, size: Size) -> int:
        run = self.runs(size)
        return run.text.count(self.mark) * run.length

    def _runs(self, size: Size | None) -> Runs:
        if size is None:
            size = max((self.fitted(size) for size in self.largest), key=self._count)
        return self.runs(self.fitted(Size(*size)))

    def _spread(self, ids: Sequence[int], runs: Sequence[Runs]) -> list[int]:
        """The tokens with every run of the image token at its full length."""
        lengths = [run.length for run in runs for _ in range(run.text.count(self.mark))]
        if sum(token == self.image_token for token in ids) != len(lengths):
            raise UserError(f"{self.mark} in a text stands for a picture: leave it out")
        length = iter(lengths)
        spread: list[int] = []
        for token in ids:
            spread += [token] * next(length) if token == self.image_token else [token]
        return spread


class SizedFamily:
    """See ``vlmoe.models.family.Family``; families say which reader, and what differs.

    Args:
        make: makes the reader.
        processor: name of transformers' picture processor.
        unquantized: paths that keep full weights.
        settings: of the processor, whatever its file says.
    """

    auto: Any = AutoModelForImageTextToText
    sees = True
    sized: tuple[str, ...] = ()
    """What ``get_image_features`` takes beside ``pixel_values``."""

    def __init__(
        self,
        make: type[SizedReader],
        processor: str,
        unquantized: tuple[str, ...],
        **settings: Any,
    ):
        self._make = make
        self._processor = processor
        self._settings = settings
        self.unquantized = unquantized

    def check(self, config: PretrainedConfig, processor: Any) -> None:
        """Raises ``UserError`` on what is not supported, or does not belong together."""

    def numbers(self, config: PretrainedConfig) -> dict[str, Any]:
        """Settings of a picture processor that goes with a config, where there are no files."""
        raise NotImplementedError

    def reader(self, source: str, config: PretrainedConfig) -> SizedReader:
        """Tokenizer and picture processor, apart: whole processors need torchvision."""
        text = config.get_text_config()
        if text.model_type not in TEXTS | set(EXACT):
            raise UserError(
                f"a {config.model_type!r} model with a language model of type "
                f"{text.model_type!r} has not been tried: it is not supported"
            )
        check_logits(config)
        with reading(source, "tokenizer"):
            tokenizer = load_tokenizer(source)
            ends = ends_of(tokenizer, source)
        with reading(source, "picture processor"):
            processor = processor_class(self._processor).from_pretrained(source, **self._settings)
            self.check(config, processor)
            if not processor.do_resize:
                raise UserError(
                    "the picture processor does not resize (do_resize false), which vlmoe counts on"
                )
        reader = self._make(config, tokenizer, ends, processor)
        known = tokenizer.get_added_vocab().values()
        if config.image_token_id not in known:
            raise UserError(
                f"token {config.image_token_id}, the model's for pictures, is no special token of "
                "the tokenizer: tokenizer and model do not belong together"
            )
        reader.render([Turn(f"{PICTURE}Which?")], [Size(100, 100)])  # a template may show none
        return checked(reader)

    def features(self, base: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """The rows (n, width) that stand for the tokens of all pictures, one after the other."""
        more = {name: batch[name] for name in self.sized if name in batch}
        found = base.model.get_image_features(pixel_values=batch["pixel_values"], **more)
        return as_rows(found.pooler_output)

    def inputs(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Embeddings with the pictures in their places, mask and positions."""
        base: Any = model
        find = None if "pixel_values" not in batch else lambda: self.features(base, batch)
        embeds = embedded(base, batch, find)
        return {"inputs_embeds": embeds, **self.seeing(base, batch, embeds.dtype)}

    def seeing(self, base: Any, batch: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
        """Mask and positions."""
        return causal_inputs(base.config.get_text_config(), batch, dtype)

    def sharing_fault(self, config: PretrainedConfig) -> str | None:
        """As for its language model: a picture depends on nothing that comes after it."""
        return sharing_fault(config)

    def noise(
        self,
        config: PretrainedConfig,
        pictures: int,
        generator: torch.Generator,
        most: int | None = None,
    ) -> tuple[list[int], dict[str, Tensor]]:
        """Of pictures of 640 x 480, without the text that may stand between their parts."""
        reader = self._without_files(config)
        reader = reader if most is None else reader.capped(most)
        blank = [Image.new("RGB", (640, 480))] * pictures
        pixels = reader.pixels(blank, "crop")
        noise = torch.randn(pixels["pixel_values"].shape, generator=generator)
        ids = [config.image_token_id] * reader._count(reader.fitted(Size(480, 640)))
        return ids, {**pixels, "pixel_values": noise}

    def tokens(self, config: PretrainedConfig, size: Size) -> int:
        """Tokens that stand for a part of a picture of that size, by ``numbers``."""
        reader = self._without_files(config)
        return reader._count(reader.fitted(size))

    def _without_files(self, config: PretrainedConfig) -> SizedReader:
        """One that reads pictures, but no text."""
        tokenizer: Any = _Marks(config)
        processor = processor_class(self._processor)(**self._settings, **self.numbers(config))
        return self._make(config, tokenizer, frozenset(), processor)


TEXTS = {"qwen2_5_vl_text", "qwen3_vl_text"}
"""Language models that come with a vision tower alone, whose positions the family makes."""


class _Marks:
    """In a tokenizer's place where there is none: it knows what stands for a picture."""

    def __init__(self, config: PretrainedConfig):
        self.image = config.image_token_id

    def convert_ids_to_tokens(self, token: int) -> str:
        return "<image>" if token == self.image else f"<{token}>"


def embedded(
    base: Any, batch: Mapping[str, Tensor], features: Callable[[], Tensor] | None
) -> Tensor:
    """The tokens' embeddings (R, S, width), each picture's rows of features in its places.

    Args:
        base: the model.
        batch: ``image_at`` says where image tokens stand in the flattened rows, ``feature_of``
            which row of the features each takes.
        features: gives the rows (n, width), if there are pictures.
    """
    embeds = base.get_input_embeddings()(batch["input_ids"])
    if features is None:
        return embeds
    rows = features().index_select(0, batch["feature_of"]).to(embeds)
    # By position: a mask would be counted through, and the host would wait for its sum.
    return embeds.flatten(0, 1).index_copy(0, batch["image_at"], rows).view_as(embeds)


def as_rows(features: Tensor | Sequence[Tensor]) -> Tensor:
    """What a model gives for pictures or tiles, in whatever form, as rows (n, width)."""
    if isinstance(features, Tensor):
        return features.flatten(0, -2)
    return torch.cat([one.flatten(0, -2) for one in features])


def processor_class(name: str) -> Any:
    """Transformers' picture processor by PIL: the same pixels with torchvision and without."""
    return getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)
