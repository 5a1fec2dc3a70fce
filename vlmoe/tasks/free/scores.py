"""The table of scores: name -> how an answer is judged by the answers that are right.

Every score of an answer is a number from 0 to 1, and that of a set of questions is their mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlmoe.errors import UserError
from vlmoe.flags import unknown_value
from vlmoe.tasks.free.vqa import vqa_accuracy

Score = Callable[[str, Sequence[str]], float]


def plain(text: str) -> str:
    """Lower case, without what stands around and one full stop at the end."""
    words = " ".join(text.casefold().split())
    return words.removesuffix(".").rstrip()


def exact_match(said: str, references: Sequence[str]) -> float:
    """1 if it is one of the references, case, spaces and a full stop at the end aside."""
    return float(plain(said) in {plain(one) for one in references})


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")  # ASCII's, as string.punctuation has it


def token_f1(said: str, references: Sequence[str]) -> float:
    """The best F1 of words, as SQuAD's script has it: articles and punctuation aside."""
    return max((_f1(_words(said), _words(one)) for one in references), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split()


def _f1(said: Sequence[str], right: Sequence[str]) -> float:
    if not said or not right:
        return float(said == right)
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


ANLS_LEAST = 0.5


def anls(said: str, references: Sequence[str]) -> float:
    """The best normalised Levenshtein similarity, 0 below one half (arXiv 1905.13648, eq. 1).

    Case and repeated spaces aside. A similarity of exactly one half is 0, by the paper's
    ``NL < tau``; some published codes let it count.
    """
    return max((_similarity(said, one) for one in references), default=0.0)


def _similarity(said: str, right: str) -> float:
    a, b = (" ".join(text.lower().split()) for text in (said, right))
    longest = max(len(a), len(b))
    distance = levenshtein(a, b) / longest if longest else 0.0
    return 1 - distance if distance < ANLS_LEAST else 0.0


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that make one text of the other."""
    row = list(range(len(b) + 1))
    for i, one in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


RELAXED = 0.05


def relaxed_accuracy(said: str, references: Sequence[str]) -> float:
    """ChartQA's: numbers may be off by 5 % of the right one, texts must be the same but for case.

    As pix2struct has it: ``12 %`` is 0.12, and a right answer of zero must be met as a text.
    """
    return float(any(_relaxed(said.strip(), one.strip()) for one in references))


def _relaxed(said: str, right: str) -> bool:
    a, b = _number(said), _number(right)
    if a is not None and b:
        return abs(a - b) <= RELAXED * abs(b)
    return said.lower() == right.lower()


_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")


def _number(text: str) -> float | None:
    """A number, also one in percent; nothing else that Python reads as one (nan, inf, 1_000)."""
    digits = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(digits):
        return None
    value = float(digits) / (100 if text.endswith("%") else 1)
    return value if abs(value) != float("inf") else None


def rouge_l(said: str, references: Sequence[str]) -> float:
    """The best F measure of the longest common subsequence of words, by Google's rouge-score.

    Raises:
        UserError: the package is not installed.
    """
    scorer = _rouge()
    return max((scorer.score(one, said)["rougeL"].fmeasure for one in references), default=0.0)


def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise UserError("rouge_l needs the package rouge-score: pip install rouge-score") from None
    return RougeScorer(["rougeL"], use_stemmer=False)


SCORES: Mapping[str, Score] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "vqa_accuracy": vqa_accuracy,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "rouge_l": rouge_l,
}
USUAL = ("exact_match", "token_f1")
"""Where a dataset names none."""


def check_scores(names: Sequence[str]) -> None:
    """Raises ``UserError`` if a score is not known, or its package not installed."""
    if unknown := [name for name in names if name not in SCORES]:
        raise UserError(unknown_value("score", unknown[0], SCORES))
    if "rouge_l" in names:
        _rouge()
