"""A conversation as tokens: by the checkpoint's own chat template, or as plain text without one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.models.family import added_tokens

# What templates read from outside: no thinking before an answer, and the same prompt every day.
PINNED: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    ends: Collection[int],
    answer: str | None = None,
) -> list[int]:
    """The tokens of a conversation up to the last turn's answer, or with it and its end.

    Markup that the model itself spelt out in an earlier answer is left out.

    Args:
        tokenizer: with a chat template, or without: then the turns follow each other as
            ``question``, a line ``Answer: ...``, and the end of text.
        turns: the last one's own ``answer`` is not looked at.
        ends: tokens that end an answer; where the template writes none, the tokenizer's own is put.
        answer: what the model says.

    Raises:
        UserError: the template writes the question otherwise once it is answered.
    """
    before = [_cleaned(tokenizer, turn.answer) for turn in turns[:-1]]
    if not tokenizer.chat_template:
        return _plain(tokenizer, turns, before, answer)
    messages: list[dict[str, str]] = []
    for turn, said in zip(turns, [*before, None], strict=True):
        messages.append({"role": "user", "content": turn.question})
        if said is not None:
            messages.append({"role": "assistant", "content": said})
    asked = _template(tokenizer, messages, add_generation_prompt=True)
    prompt = _tokens(tokenizer, asked)
    if answer is None:
        return prompt
    whole = _template(tokenizer, [*messages, {"role": "assistant", "content": answer}])
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
) -> list[int]:
    end = tokenizer.eos_token
    text = ""
    for turn, said in zip(turns, [*before, None], strict=True):
        gap = "" if turn.question.endswith("\n") else "\n"
        text += f"{turn.question}{gap}Answer:"
        if said is not None:
            text += f" {said}{end}"
    if answer is not None:
        text += f" {answer}"
    # Its own markup in front, such as Llama's <s> or GLM's [gMASK]<sop>.
    ids = list(tokenizer(text)["input_ids"])
    return ids if answer is None else [*ids, tokenizer.eos_token_id]


def _template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], **options: Any
) -> str:
    return tokenizer.apply_chat_template(  # type: ignore[return-value]
        list(messages), tokenize=False, **options, **PINNED
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Without the markup that the tokenizer puts in front: a template writes its own."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cleaned(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    for mark in added_tokens(tokenizer):
        answer = answer.replace(mark, "")
    return answer.strip()
