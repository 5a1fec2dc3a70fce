"""What a model said in its own words -> the option it means, or none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmoe.data.example import LETTERS

_AROUND = " \t\r\n.,!?;:'\""
_EMPHASIS = re.compile(r"[*`]")
_INSIDE = r"[\w'\u2019]"  # beside a letter it makes a word of it
_LONG = 5  # words; what is longer is searched for an option's text


def parse_answer(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that ``text`` names, or None. The same text, the same answer.

    The rules of VMCBench's public kits, with a letter or an option's text alone in front and
    without the random pick at the end. The first rule that finds something decides, and of
    several finds the last in the text:

    1. the text is a letter, of either case, bare or in punctuation: ``B``, ``b.``, ``(B)``
    2. the text is an option's text, case and punctuation around it aside
    3. marked capital letters: ``(B)``, ``B.``, ``B)``, ``B:``
    4. capital letters that stand alone
    5. options' texts within more than five words; the longer of two that end together

    ``*`` and backticks (Markdown) are left out first. Letters beyond the options are none.
    """
    said = _EMPHASIS.sub("", text).strip()
    letters = LETTERS[: len(choices)]
    bare = said.strip(_AROUND + "()").upper()
    if len(bare) == 1 and bare in letters:
        return letters.index(bare)

    texts = [_EMPHASIS.sub("", choice).strip(_AROUND).casefold() for choice in choices]
    words = said.strip(_AROUND).casefold()
    if words and words in texts:
        return texts.index(words)

    alone = rf"(?<!{_INSIDE})([{letters}])(?!{_INSIDE})"
    for pattern in (rf"\(([{letters}])(?=\))|(?<!{_INSIDE})([{letters}])[.):](?!\w)", alone):
        if found := list(re.finditer(pattern, said)):
            return letters.index(found[-1][found[-1].lastindex or 0])

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
