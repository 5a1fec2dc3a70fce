"""Text that grows token by token is told once, and ends before a stop text."""

from __future__ import annotations

import json

import pytest

from vlmoe.serve.answers import Growing, event


def told(said: list[str], stops: list[str], end: str = "end") -> tuple[list[str], str]:
    """What is new with each step, and the end."""
    growing, pieces = Growing(stops), []
    for number, text in enumerate(said, start=1):
        pieces.append(growing.more(text, end if number == len(said) else ""))
        if growing.end:
            break
    return pieces, growing.end


@pytest.mark.parametrize(
    ("said", "stops", "pieces", "end"),
    [
        (["A", "A ring", "A ring."], [], ["A", " ring", "."], "end"),
        (["", "A"], [], ["", "A"], "end"),
        (["A ring", "A ring is", "A ring is red"], [" is"], ["A ring", ""], "stop"),
        # What could begin a stop text waits until it does not, or until the end.
        (["a\n", "a\nb", "a\nb\n\nc"], ["\n\n"], ["a", "\nb", ""], "stop"),
        (["ab", "abab", "ababc"], ["abc"], ["", "ab", ""], "stop"),
        (["ab", "aba"], ["abc"], ["", "aba"], "end"),
        # The first of several, wherever they stand in the list.
        (["x one two"], ["two", "one"], ["x "], "stop"),
        (["stop"], ["stop"], [""], "stop"),
        # It came within the longest length: the text decides.
        (["x stop"], ["stop"], ["x "], "stop"),
    ],
)
def test_text_that_grows(said, stops, pieces, end):
    assert told(said, stops) == (pieces, end)


def test_a_stop_text_in_any_pieces_gives_one_answer():
    """However the text is cut into tokens, the same is told."""
    text, stops = "one, two, three; four", ["three;", ", th", "##"]
    for size in range(1, len(text) + 1):
        said = [text[:at] for at in range(size, len(text) + size, size)]
        pieces, end = told(said, stops)
        assert ("".join(pieces), end) == ("one, two", "stop")


def test_a_tokenizer_that_takes_back_what_it_said_is_told():
    growing = Growing()
    growing.more("do n", "")
    with pytest.raises(RuntimeError, match="took back"):
        growing.more("don't", "")


def test_an_event_is_one_line():
    line = event({"content": "a\nb\r\n\u2028\ud83d\ude00 \U0001f600"})
    assert line.startswith(b"data: ")
    assert line.endswith(b"\n\n")
    assert b"\n" not in line[:-2]
    assert json.loads(line.removeprefix(b"data: "))["content"].startswith("a\nb")
