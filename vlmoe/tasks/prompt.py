"""What a user says to ask a multiple-choice question, word for word, in three styles.

How a conversation around it is written is the family's business (``vlmoe.models.family``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmoe.data.example import LETTERS, Example
from vlmoe.data.turn import PICTURE, Turn

INSTRUCTION = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class PromptStyle:
    """One way to ask a multiple-choice question, and to answer it.

    Attributes:
        name: what ``--prompt`` calls it.
        user: what the user says, with places for ``{question}`` and ``{options}``.
        lead: what the model says before the letter, or before an option's text.
        tail: and after the letter.
    """

    name: str
    user: str
    lead: str = ""
    tail: str = ""

    def ask(self, question: str, choices: Sequence[str]) -> str:
        """What the user says, a picture aside."""
        options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
        return self.user.format(question=question, options="\n".join(options))

    def turn(self, example: Example, *, picture: bool) -> Turn:
        """The question as a user puts it, behind its picture or without."""
        asked = self.ask(example.question, example.choices)
        return Turn(PICTURE + asked if picture else asked)

    def answer(self, letter: str) -> str:
        """What is said when an option is chosen by its letter."""
        return f"{self.lead}{letter}{self.tail}"


# LLaVA-1.5's own, the one its base was tuned with.
LLAVA = PromptStyle("llava", "{question}\n{options}\n" + INSTRUCTION)
# VMCBench's, as both public kits have it, in LLaVA's conversation.
VMCBENCH = PromptStyle("vmcbench", "Question: {question}\nOptions:\n{options}\n" + INSTRUCTION)
# The one of the code published for arXiv 2502.15828: no instruction, and a sentence for an answer.
PAPER = PromptStyle("paper", "{question}\n{options}\n\n", lead="The answer is ", tail=".")

# LLaVA's, and for questions that have the same answers in words too: they become its options.
LETTERS_STYLE = PromptStyle("letters", LLAVA.user)

PROMPTS = {style.name: style for style in (LLAVA, VMCBENCH, PAPER, LETTERS_STYLE)}


def multiple_choice(question: str, choices: Sequence[str]) -> str:
    """Question, lettered options and the instruction LLaVA-1.5 was trained with."""
    return LLAVA.ask(question, choices)
