"""VQA accuracy: how many of ten people gave the same answer, written alike.

The rules are those of the official evaluation (github.com/GT-Vision-Lab/VQA at a013f00), slips
included, since published numbers have them:

- Answers are only normalised where people disagree.
- A punctuation mark is dropped where one of its kind has a space beside it in the answer, or where
  a comma stands between two digits; else it becomes a space. A full stop goes where no digit
  follows it, and at most the first 32 of them.
- Number words up to ten become digits, "none" becomes 0, articles go, apostrophes come back.

    accuracy = mean over people i of min(1, |{j != i: answer_j = said}| / 3)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_STOPS = 32  # re.UNICODE, which is handed over in the place of a count
_NUMBERS = dict(
    zip(
        [
            "none",
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
        ],
        ("0", *map(str, range(11))),
        strict=True,
    )
)
_ARTICLES = ("a", "an", "the")
_SHORT = [
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "couldn't've",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hadn't've",
    "hasn't",
    "haven't",
    "he'd",
    "he'd've",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'd've",
    "it'll",
    "ma'am",
    "mightn't",
    "mightn't've",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "'ow's'at",
    "shan't",
    "she'd've",
    "should've",
    "shouldn't",
    "shouldn't've",
    "somebody'd've",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'd've",
    "someone'll",
    "someone's",
    "something'd",
    "something'd've",
    "something'll",
    "that's",
    "there'd",
    "there'd've",
    "there're",
    "there's",
    "they'd",
    "they'd've",
    "they'll",
    "they're",
    "they've",
    "'twas",
    "wasn't",
    "we'd've",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'd've",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "wouldn't've",
    "y'all",
    "y'all'll",
    "y'all'd've",
    "you'd",
    "you'd've",
    "you'll",
    "you're",
    "you've",
]
_APOSTROPHES = {
    word[:at] + word[at + 1 :]: word
    for word in _SHORT
    for at, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}


def vqa_accuracy(said: str, references: Sequence[str]) -> float:
    """From 0 to 1; of a single reference, where there is nobody else to agree, 1 if it is met.

    Args:
        said: the answer.
        references: what each person answered.
    """
    said, right = _spaced(said), [_spaced(one) for one in references]
    if len(right) == 1:
        return float(normalised(said) == normalised(right[0]))
    if len(set(right)) > 1:
        said, right = normalised(said), [normalised(one) for one in right]
    met = right.count(said)
    return sum(min(1.0, (met - (one == said)) / 3) for one in right) / max(1, len(right))


def normalised(answer: str) -> str:
    """An answer as it is compared where people disagree."""
    plain = answer
    in_number = _COMMA_IN_NUMBER.search(answer) is not None
    for mark in _PUNCTUATION:
        beside = f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if beside or in_number else " ")
    plain = _FULL_STOP.sub("", plain, count=_STOPS)
    words = [_NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(_APOSTROPHES.get(word, word) for word in words if word not in _ARTICLES)


def _spaced(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()
