"""How a question is put to LLaVA-1.5 and how the answer begins, word for word, in three styles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmoe.data.example import LETTERS, RESERVED, Example

IMAGE = "<image>"
END = "</s>"
INSTRUCTION = "Answer with the option's letter from the given choices directly."


def chat(user: str, *, picture: bool, gap: str = " ") -> str:
    """One turn of LLaVA-1.5's conversation, up to where the assistant begins to answer."""
    return f"USER: {IMAGE}\n{user}{gap}ASSISTANT:" if picture else f"USER: {user}{gap}ASSISTANT:"


@dataclass(frozen=True)
class Turn:
    """A question in a conversation, and what the model said to it (nothing yet: empty)."""

    question: str
    answer: str = ""


def conversation(turns: Sequence[Turn], *, picture: bool) -> str:
    """LLaVA-1.5's conversation up to where the assistant begins to answer the last question.

    The picture stands before the first question. Chat markup that the model itself spelt out in
    an earlier answer is left out: it would become control tokens.
    """
    text = ""
    for at, turn in enumerate(turns):
        text += chat(turn.question, picture=picture and at == 0)
        if at < len(turns) - 1:
            answer = turn.answer
            for mark in RESERVED:
                answer = answer.replace(mark, "")
            text += f" {answer.strip()}{END}"
    return text


@dataclass(frozen=True)
class PromptStyle:
    """One way to ask a multiple-choice question, and to answer it.

    Attributes:
        name: what ``--prompt`` calls it.
        user: what the user says, with places for ``{question}`` and ``{options}``.
        gap: what stands between the user's words and ``ASSISTANT:``.
        lead: what the assistant says before the letter.
        tail: and after it.
    """

    name: str
    user: str
    gap: str = " "
    lead: str = ""
    tail: str = ""

    def ask(self, question: str, choices: Sequence[str]) -> str:
        """What the user says, a picture aside."""
        options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        return self.user.format(question=question, options="\n".join(options))

    def prompt(self, example: Example, *, picture: bool) -> str:
        """All that stands before the answer, with a place for a picture or without."""
        return chat(self.ask(example.question, example.choices), picture=picture, gap=self.gap)

    @property
    def picture_first(self) -> bool:
        """Whether what precedes the picture is the same for every question."""
        before = {
            self.prompt(Example("", None, question, ("a", "b"), 0), picture=True).partition(IMAGE)[
                0
            ]
            for question in ("Which?", "Where?")
        }
        return len(before) == 1

    def answer(self, option: str) -> str:
        """What follows the prompt when ``option`` (a letter) is chosen."""
        return f"{self.lead} {option}{self.tail}"


# LLaVA-1.5's own, the one its base was tuned with.
LLAVA = PromptStyle("llava", "{question}\n{options}\n" + INSTRUCTION)
# VMCBench's, as both public kits have it, in LLaVA's conversation.
VMCBENCH = PromptStyle("vmcbench", "Question: {question}\nOptions:\n{options}\n" + INSTRUCTION)
# The one of the code published for arXiv 2502.15828: no instruction, and a sentence for an answer.
PAPER = PromptStyle("paper", "{question}\n{options}", gap="\n\n", lead=" The answer is", tail=".")

PROMPTS = {style.name: style for style in (LLAVA, VMCBENCH, PAPER)}


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """Question, lettered options and the instruction LLaVA-1.5 was trained with."""
    return LLAVA.ask(question, choices)
