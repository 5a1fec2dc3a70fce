"""Letters that options carry are taken off, where they are letters."""

from __future__ import annotations

import pytest

from vlmoe.data.lettering import LettersOutOfOrder, strip_letters


@pytest.mark.parametrize(
    "choices",
    [
        ("A. Red.", "B. Blue."),
        ("A.Red.", "B.Blue."),
        ("(A) Red.", "(B) Blue."),
        ("\N{FULLWIDTH LEFT PARENTHESIS}A\N{FULLWIDTH RIGHT PARENTHESIS}Red.", "(B) Blue."),
        ("a) Red.", "b) Blue."),
        ("A: Red.", " B: Blue."),
        ("A - Red.", "B - Blue."),
        ("A、Red.", "B、Blue."),
        ("[A] Red.", "[B] Blue."),
        ("**A.** Red.", "**B.** Blue."),
        ("- A. Red.", "- B. Blue."),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}.Red.", "B. Blue."),
        ("A\N{FULLWIDTH COLON}Red.", "B\N{FULLWIDTH FULL STOP}Blue."),
    ],
)
def test_letters_are_taken_off(choices: tuple[str, ...]) -> None:
    assert strip_letters(choices) == ("Red.", "Blue.")


@pytest.mark.parametrize(
    "choices",
    [
        ("A. Red.", "Blue."),  # one without
        ("A", "B"),  # nothing else
        ("A.", "B."),
        ("A. Lincoln", "J. Adams"),  # initials
        ("A.D.", "B.C."),
        ("A cat", "B movie"),
        ("A-level", "B-side"),
        ("a:b", "b:a"),
        ("A. Red.",),
        (),
    ],
)
def test_other_options_stay(choices: tuple[str, ...]) -> None:
    assert strip_letters(choices) is None


def test_letters_that_contradict_the_order() -> None:
    with pytest.raises(LettersOutOfOrder):
        strip_letters(("B. Blue.", "A. Red."))
