"""A conversation as tokens: by the checkpoint's own chat template, or as plain text without one."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.family import Reader, added_tokens

R = TypeVar("R", bound=Reader)

# What templates read from outside: no thinking before an answer, and the same prompt every day.
PINNED: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


class Shown(NamedTuple):
    """Pictures of a conversation.

    Attributes:
        written: what a base's template may write in the place of each; the first is written where
            there is no template.
        texts: what is to stand there, in order.
    """

    written: Sequence[str]
    texts: Sequence[str]

    def put(self, text: str) -> str:
        """The text with every picture's own in its place. Raises ``UserError`` on a miscount."""
        place = re.compile("|".join(map(re.escape, self.written)))
        if len(place.findall(text)) != len(self.texts):
            raise UserError(
                f"{len(self.texts)} pictures, and {len(place.findall(text))} places for them "
                f"({' or '.join(self.written)}) in the conversation: the model's chat template "
                "shows no pictures, or a text holds this markup"
            )
        own = iter(self.texts)
        return place.sub(lambda _: next(own), text)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    ends: Collection[int],
    answer: str | None = None,
    shown: Shown | None = None,
) -> list[int]:
    """The tokens of a conversation up to the last turn's answer, or with it and its end.

    Markup that the model itself spelt out in an earlier answer is left out.

    Args:
        tokenizer: with a chat template, or without: then the turns follow each other as
            ``question``, a line ``Answer: ...``, and the end of text.
        turns: the last one's own ``answer`` is not looked at. A system's text that the template has
            no place for stands above the first question.
        ends: tokens that end an answer; where the template writes none, the tokenizer's own is put.
        answer: what the model says.
        shown: the pictures, for a base that sees: its template takes lists of parts.

    Raises:
        UserError: the template writes the question otherwise once it is answered, or has not as
            many places for pictures as there are.
    """
    before = [_cleaned(tokenizer, turn.answer) for turn in turns[:-1]]
    if not tokenizer.chat_template:
        return _plain(tokenizer, turns, before, answer, shown)
    messages: list[dict[str, Any]] = []
    for turn, said in zip(turns, [*before, None], strict=True):
        messages.append({"role": "user", "content": _content(turn.question, shown)})
        if said is not None:
            messages.append({"role": "assistant", "content": _content(said, shown)})
    if system := turns[0].system:
        messages = _under(system, messages, tokenizer, shown)
    asked = _template(tokenizer, messages, shown, add_generation_prompt=True)
    prompt = _tokens(tokenizer, asked)
    if answer is None:
        return prompt
    last = {"role": "assistant", "content": _content(answer, shown)}
    whole = _template(tokenizer, [*messages, last], shown)
    if not whole.startswith(asked):
        raise UserError(
            "this model's chat template writes a question otherwise when an answer follows it, so "
            "it cannot be trained on: take another checkpoint's template"
        )
    ids = _tokens(tokenizer, whole)
    for at in range(len(prompt), len(ids)):
        if ids[at] in ends:
            return ids[: at + 1]
    return [*ids, tokenizer.eos_token_id]


def _under(
    system: str,
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    shown: Shown | None,
) -> list[dict[str, Any]]:
    """The messages below a system's text: some templates refuse one, some drop it in silence."""
    above = [{"role": "system", "content": _content(system, shown)}, *messages]
    try:
        if system in _template(tokenizer, above, shown, add_generation_prompt=True):
            return above
    except TemplateError:
        pass
    first = messages[0]["content"]
    if isinstance(first, str):
        return [{"role": "user", "content": f"{system}\n\n{first}"}, *messages[1:]]
    text = {"type": "text", "text": f"{system}\n\n"}
    return [{"role": "user", "content": [text, *first]}, *messages[1:]]


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer; its template may lie in the processor's file of former days."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    if not tokenizer.chat_template:
        quiet: Any = {
            f"_raise_exceptions_for_{what}": False
            for what in ("missing_entries", "connection_errors")
        }
        file = cached_file(source, "chat_template.json", **quiet)
        if file is not None:
            kept = json.loads(Path(file).read_text(encoding="utf-8"))
            tokenizer.chat_template = kept["chat_template"]
    if not tokenizer.chat_template:
        warnings.warn(
            f"{source} has no chat template: its conversations are plain text, each answer behind "
            "'Answer:'; if it was tuned on conversations, take a checkpoint that has its template",
            stacklevel=2,
        )
    return tokenizer


def checked(reader: R) -> R:
    """The reader, once a conversation of it begins as it should.

    Raises:
        UserError: template and tokenizer both write what a sequence begins with.
    """
    begin = reader.tokenizer.bos_token_id
    if begin is not None and reader.render([Turn("Which?")])[:2] == [begin, begin]:
        raise UserError(
            f"this model's conversations begin with {reader.tokenizer.bos_token} twice: its "
            "tokenizer's settings and its chat template do not belong together"
        )
    return reader


def ends_of(tokenizer: PreTrainedTokenizerBase, source: str) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's own, and those of the generation config."""
    try:
        named = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # it may lack one
        named = None
    listed = named if isinstance(named, list) else [named]
    return frozenset(token for token in (tokenizer.eos_token_id, *listed) if token is not None)


def _plain(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    before: Sequence[str],
    answer: str | None,
    shown: Shown | None,
) -> list[int]:
    end = tokenizer.eos_token
    text = f"{turns[0].system}\n\n" if turns[0].system else ""
    for turn, said in zip(turns, [*before, None], strict=True):
        gap = "" if turn.question.endswith("\n") else "\n"
        text += f"{turn.question}{gap}Answer:"
        if said is not None:
            text += f" {said}{end}"
    if answer is not None:
        text += f" {answer}"
    if shown is not None:
        text = shown.put(text.replace(PICTURE, shown.written[0]))
    # Its own markup in front, such as Llama's <s> or GLM's [gMASK]<sop>.
    ids = list(tokenizer(text)["input_ids"])
    return ids if answer is None else [*ids, tokenizer.eos_token_id]


def _content(text: str, shown: Shown | None) -> Any:
    """A message as templates take it: a text, or for a base that sees a list of its parts."""
    if shown is None:
        return text
    parts: list[dict[str, str]] = []
    for at, piece in enumerate(text.split(PICTURE)):
        parts += [{"type": "image"}] * (at > 0)
        parts += [{"type": "text", "text": piece}] * bool(piece)
    return parts


def _template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    shown: Shown | None,
    **options: Any,
) -> str:
    text: Any = tokenizer.apply_chat_template(list(messages), tokenize=False, **options, **PINNED)
    return text if shown is None else shown.put(text)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Without the markup that the tokenizer puts in front: a template writes its own."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cleaned(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    for mark in added_tokens(tokenizer):
        answer = answer.replace(mark, "")
    return answer.strip()
