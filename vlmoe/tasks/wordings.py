"""How the questions of known text sets are put: in our words, and in the paper's.

The paper's are those of the code published for arXiv 2502.15828, word for word; sets that it does
not have (RTE, OpenBookQA, Social IQa) are put as the nearest one of it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmoe.data.described import CLASSIFICATION, Described
from vlmoe.data.example import LETTERS, Example
from vlmoe.tasks.prompt import PAPER, PROMPTS, PromptStyle


@dataclass(frozen=True)
class Wording:
    """One set.

    Attributes:
        ask: what is asked, in our words, in front of a question.
        line: the same in the paper's.
        heading: over the question, in the paper's; empty: none.
        reply: over the answer.
        says: what is answered there for each label; of lettered options, with ``{}`` for
            the letter.
    """

    ask: str
    line: str
    heading: str
    reply: str
    says: tuple[str, ...]

    @property
    def published(self) -> str:
        """The paper's prompt, with a place for the ``{question}``."""
        over = f"### {self.heading}:\n\n" if self.heading else ""
        return f"{self.line}\n\n{over}{{question}}\n\n### {self.reply}:\n"


_SENTENCES = "Below are two sentences. Please tell me if they are equivalent or not."
_PREMISE = (
    "Given the following premise and hypothesis, determine their relationship "
    "(entailment, contradiction or neutral)."
)
_EQUIVALENT = ("They are not equivalent.", "They are equivalent.")
WORDINGS = {
    "cola": Wording(
        "Is this sentence acceptable English?",
        "Below is a sentence. Please check whether the sentence is grammatically correct or wrong.",
        "Sentence",
        "Answer",
        ("The sentence is grammatically wrong.", "The sentence is grammatically correct."),
    ),
    "sst2": Wording(
        "Is this comment on a film positive or negative?",
        "Below is a short comment of a movie. Please judge whether the author has a positive or "
        "negative attitude of this movie.",
        "Comment",
        "Answer",
        ("The author has a negative attitude.", "The author has a positive attitude."),
    ),
    "mrpc": Wording(
        "Do these two sentences say the same?", _SENTENCES, "Sentences", "Answer", _EQUIVALENT
    ),
    "qqp": Wording(
        "Do these two questions ask the same?",
        "Below are two questions. Please tell me if they are equivalent or not.",
        "Questions",
        "Answer",
        _EQUIVALENT,
    ),
    "stsb": Wording(
        "How similar are these two sentences, from 0 (unrelated) to 5 (the same)?",
        "Below are two sentences. Please rate the semantic similarity of these two sentences. "
        "(1-5 scale, 1 being least similar and 5 being most similar.",
        "Sentences",
        "Answer",
        tuple(f"Their similarity can be rated as {number}" for number in range(6)),
    ),
    "mnli": Wording(
        "What does the premise say about the hypothesis?",
        _PREMISE,
        "",
        "Answer",
        tuple(f"The relation is {name}." for name in ("entailment", "neutral", "contradiction")),
    ),
    "qnli": Wording(
        "Does the sentence hold the answer to the question?",
        "Below are a question and a sentence. Please tell me if the sentence contains the answer "
        "to the question.",
        "Question and Sentence",
        "Response",
        ("The sentence contains the answer", "The sentence does not contain the answer"),
    ),
    "rte": Wording(
        "Does the hypothesis follow from the premise?",
        "Given the following premise and hypothesis, determine their relationship "
        "(entailment or not entailment).",
        "",
        "Answer",
        ("The relation is entailment.", "The relation is not entailment."),
    ),
    "wnli": Wording(
        "Is the pronoun resolved rightly?",
        "Given a sentence and a possible resolution of its pronoun reference, determine if the "
        "resolution is correct.",
        "Sentence and Resolution",
        "Answer",
        ("The resolution is wrong.", "The resolution is correct."),
    ),
}
_CHOOSE = Wording(
    "",
    "Below is a question followed by several possible answers. Please choose the correct answer.",
    "Question and Possible Answers",
    "Correct Answer",
    ("The correct answer is {}.",),
)
_ALPACA = Wording(
    "",
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.",
    "Instruction",
    "Response",
    ("Answer: The answer is {}.",),
)
LETTERED = {"commonsenseqa": _CHOOSE, "openbookqa": _CHOOSE, "siqa": _CHOOSE, "scienceqa": _ALPACA}


@dataclass(frozen=True)
class LabelStyle(PromptStyle):
    """A way to ask for one of a few answers that are the same for every question.

    Attributes:
        says: what is said for each label.
        plain: whether the text stands by itself, without the base's conversation around it.
        five: whether a number is taught and read in STS-B's five classes, as the paper has it.
    """

    says: tuple[str, ...] = ()
    plain: bool = False
    five: bool = False

    def ask(self, question: str, choices: Sequence[str]) -> str:
        """What the user says; the answers that there are stand in the wording."""
        return self.user.format(question=question)

    def taught(self, example: Example) -> int:
        """The label that is taught for an example."""
        if self.five and example.value is not None:
            return five_classes(example.value)
        return example.answer


@dataclass(frozen=True)
class PublishedStyle(PromptStyle):
    """The paper's way to ask for a lettered option of a text set; it stands by itself."""

    plain: bool = True
    alpaca: bool = False

    def ask(self, question: str, choices: Sequence[str]) -> str:
        """Question and options, as that set has them."""
        pairs = list(zip(LETTERS, choices, strict=False))
        if self.alpaca:  # ScienceQA's
            # The instruction's own heading is followed by one line end, not two.
            options = " ".join(f"({letter}) {choice}" for letter, choice in pairs)
            body = f"Context: N/A\nQuestion: {question}\nOptions: {options}\n"
            return self.user.replace(":\n\n{question}", ":\n{question}").format(question=body)
        options = "\n".join(f"({letter}). {choice}" for letter, choice in pairs)
        return self.user.format(question=f"{question}\n{options}")


def five_classes(score: float) -> int:
    """STS-B's score as the paper's class: 1 up to 1, then 2 up to 2, ... and 5 above 4."""
    return next((top for top in range(1, 5) if score <= top), 5)


def style_of(described: Described, prompt: str) -> PromptStyle:
    """How questions are put: a set's own way if it has one, else that of the name.

    Args:
        described: what the questions are.
        prompt: one of ``PROMPTS``. ``letters`` puts a classification's answers as options too.
    """
    wording = WORDINGS.get(described.name)
    published = prompt == PAPER.name
    if published and described.name in LETTERED:
        one = LETTERED[described.name]
        lead, _, tail = one.says[0].partition("{}")
        return PublishedStyle(prompt, one.published, lead, tail, alpaca=one is _ALPACA)
    if described.kind != CLASSIFICATION or prompt not in (PAPER.name, "llava"):
        return PROMPTS[prompt]
    if published and wording is not None and len(wording.says) == len(described.labels):
        return LabelStyle(
            prompt, wording.published, says=wording.says, plain=True, five=described.is_number
        )
    labels = described.labels
    among = f"{', '.join(labels[:-1])} or {labels[-1]}"
    head = f"{wording.ask}\n" if wording else ""
    return LabelStyle(prompt, f"{head}{{question}}\nAnswer with {among}.", says=labels)
