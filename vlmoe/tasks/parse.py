"""What a model said in its own words -> the option it means, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmoe.data.example import LETTERS
from vlmoe.data.lettering import read_mark

_AROUND = " \t\r\n.,!?;:'\"\u3001\u3002\u300c\u300d\u300e\u300f\u201c\u201d\u2018\u2019"
_BRACKETS = "()[]\u3010\u3011"
_EMPHASIS = re.compile(r"[*`]")
# Of the width of a Chinese character; the same signs otherwise.
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
# What makes a word of the letter beside it: another letter or an apostrophe. Chinese, Japanese and
# Korean put no space between a Latin letter and their own.
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_BEFORE = rf"(?<![^\W{_CJK}])(?<!['\u2019])"
_AFTER = rf"(?![^\W{_CJK}])(?!['\u2019])"
_CUES = (
    r"(?:\b(?:answer|option|choice|letter)(?:\s+(?:is|would be|should be|must be))?"
    r"|答案|选项|選項|选择|選擇|选|選|正解)(?:应该|應該)?(?:是|为|為|は)?"
)
# Behind a small letter: no word that it could be the article of.
_ENDED = (
    r"(?=[ \t]*$|[.,;:!?)\]\"'\u2019\u3001\u3002](?!\w)|\s*[-\u2013\u2014]\s"
    rf"|\s+(?:is|because)\b|[\u3001\u3002{_CJK}])"
)
_LONG = 5  # words; what is longer is searched for an option's text


def parse_answer(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that ``text`` names, or None. The same text, the same answer.

    The rules of VMCBench's public kits, with a letter or an option's text alone in front, small
    letters where they cannot be words, and without the random pick at the end. The first rule that
    finds something decides, and of several finds the last in the text:

    1. the text is a letter, of either case, bare or in punctuation: ``B``, ``b.``, ``(B)``
    2. the text is an option's text, case and punctuation around it aside; or its letter and its
       text, whatever letters stand in that (``B.A dog``)
    3. marked letters: ``(B)``, ``B.``, ``B)``, ``B:``; small ones as ``(b)``, as ``b)``, ``b.`` or
       ``b:`` in front of a line, and behind ``answer is``, ``option`` and the like, unless a word
       follows (``the answer is a dog``)
    4. capital letters that stand alone
    5. options' texts within more than five words; the longer of two that end together

    ``*`` and backticks (Markdown) are left out first, and signs of full width (``Ｂ``, ``（``) are
    taken as the usual ones. Chinese, Japanese and Korean characters beside a letter make no word of
    it. Letters beyond the options are none.
    """
    said = _plain(text).strip()
    letters = LETTERS[: len(choices)]
    bare = said.strip(_AROUND + _BRACKETS).upper()
    if len(bare) == 1 and bare in letters:
        return letters.index(bare)

    texts = [_plain(choice).strip(_AROUND).casefold() for choice in choices]
    words = said.strip(_AROUND).casefold()
    if words and words in texts:
        return texts.index(words)

    own = read_mark(said)
    if own and own[0].upper() in letters:
        index = letters.index(own[0].upper())
        if own[1].strip(_AROUND).casefold() == texts[index]:
            return index

    for patterns in (_marked(letters), [rf"{_BEFORE}([{letters}]){_AFTER}"]):
        found = [
            match for pattern in patterns for match in re.finditer(pattern, said, re.MULTILINE)
        ]
        if found:
            last = max(found, key=lambda match: match.start(1))
            return letters.index(last[1].upper())

    if len(words.split()) <= _LONG:
        return None
    # The last in the text; of those that end together the longest: `red cat`, not `cat`.
    hits = [
        (match.end(), len(option), -index)
        for index, option in enumerate(texts)
        if option
        for match in re.finditer(rf"(?<!\w){re.escape(option)}(?!\w)", words)
    ]
    return -max(hits)[2] if hits else None


def _plain(text: str) -> str:
    return _EMPHASIS.sub("", text.translate(_FULL_WIDTH))


def _marked(letters: str) -> list[str]:
    """Patterns of letters that are marked as one; the letter is their first group."""
    small = letters.lower()
    mark = rf"[.):。、](?![^\W{_CJK}])"
    return [
        rf"\(([{letters}])(?=\))",
        rf"{_BEFORE}([{letters}]){mark}",
        rf"{_BEFORE}\(([{small}])(?=\))",
        rf"^\s*([{small}]){mark}",
        rf"(?i:{_CUES})[\s:]*['\"(]*([{small}]){_ENDED}",
    ]
