"""What the demo takes from a visitor, and the words in which it refuses the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmoe.data.example import question_fault
from vlmoe.data.image import ImageError, load_rgb
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError

FEWEST_OPTIONS, MOST_OPTIONS = 2, 8


@dataclass(frozen=True)
class Limits:
    """Bounds on what one visitor can make the server do.

    Attributes:
        upload_mb: size of a picture's file.
        megapixels: size of a picture; checked on the file's header, before it is decoded.
        question: characters of a question.
        option: characters of an option.
        talk: characters of a whole conversation.
        new_tokens: longest answer.
        seconds: for one answer.
        waiting: requests in the queue; more are turned away.
        keep_seconds: an upload stays this long after its last use.
    """

    upload_mb: int = 10
    megapixels: int = 40
    question: int = 2000
    option: int = 500
    talk: int = 50_000
    new_tokens: int = 256
    seconds: float = 60
    waiting: int = 10
    keep_seconds: int = 600

    @property
    def no_upload(self) -> str:
        """The answer to every path that is not the asker's, whatever there is at it."""
        return (
            "The picture is not among your uploads, which are removed "
            f"{self.keep_seconds} seconds after their last use: upload it again."
        )

    def picture(self, path: str | Path) -> Image.Image:
        """Decode an uploaded picture. Raises ``UserError`` if it is too large or none."""
        file = Path(path)
        if not file.is_file():
            raise UserError(self.no_upload)
        if file.stat().st_size > self.upload_mb * 1_000_000:
            raise UserError(f"The picture's file is larger than {self.upload_mb} MB: shrink it.")
        return self.decoded(file.read_bytes())

    def decoded(self, content: bytes, pixels: int | None = None) -> Image.Image:
        """Decode a picture's file. Raises ``UserError`` if it has too many pixels or is none.

        Args:
            content: of the file.
            pixels: it may have; None: as many as one picture may.
        """
        try:
            return load_rgb(content, self.megapixels * 1_000_000 if pixels is None else pixels)
        except ImageError as error:
            raise UserError(f"The picture cannot be used: {error.reason}.") from error

    def decoded_all(self, contents: Sequence[bytes]) -> list[Image.Image]:
        """Decode several, which together have no more pixels than one may have."""
        pictures: list[Image.Image] = []
        left = self.megapixels * 1_000_000
        for content in contents:
            pictures.append(self.decoded(content, left))
            left -= pictures[-1].width * pictures[-1].height
        return pictures

    def asked(self, question: str | None) -> str:
        """A question, trimmed. Raises ``UserError`` if it is empty, too long or has chat markup."""
        question = (question or "").strip()
        if not question:
            raise UserError("The question is empty: type one first.")
        if len(question) > self.question:
            raise UserError(
                f"The question has {len(question):,} characters, at most {self.question:,} are "
                "taken: shorten it."
            )
        _check_written(question)
        if wrong := question_fault(question):
            raise UserError(f"The question cannot be asked: {wrong}.")
        return question

    def conversation(self, turns: Sequence[Turn]) -> list[Turn]:
        """A conversation whose last question is to be answered, its questions trimmed.

        Raises:
            UserError: a question is refused, or it is too long to be looked at as a whole.
        """
        length = sum(len(turn.question) + len(turn.answer) for turn in turns[:-1])
        if length > self.talk:
            raise UserError(
                f"The conversation has {length:,} characters, at most {self.talk:,} are taken: "
                "begin a new one."
            )
        for turn in turns[:-1]:
            _check_written(turn.answer)
        return [Turn(self.asked(turn.question), turn.answer) for turn in turns]

    def options(self, given: str | Sequence[str] | None) -> tuple[str, ...]:
        """Options, one a line or in a list, trimmed; empty lines do not count.

        Raises:
            UserError: too few or too many, or one that is too long or no text.
        """
        lines = given.splitlines() if isinstance(given, str) else given or []
        if not (isinstance(lines, list | tuple) and all(isinstance(line, str) for line in lines)):
            raise UserError("The options must be a list of texts.")
        options = tuple(line.strip() for line in lines if line.strip())
        if not FEWEST_OPTIONS <= len(options) <= MOST_OPTIONS:
            raise UserError(
                f"There {'is 1 option' if len(options) == 1 else f'are {len(options)} options'}: "
                f"give {FEWEST_OPTIONS} to {MOST_OPTIONS}, one a line."
            )
        _check_written("".join(options))
        longest = max(map(len, options))
        if longest > self.option:
            raise UserError(
                f"An option has {longest:,} characters, at most {self.option:,} are taken."
            )
        return options


def _check_written(text: str) -> None:
    """Raise ``UserError`` for half a character, which no tokenizer and no answer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            "The text holds half a character (a lone surrogate): leave it out."
        ) from None
