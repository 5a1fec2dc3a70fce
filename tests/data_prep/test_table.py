"""Tables whose quotation marks are marks around fields, or letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmoe.data_prep.fault import Fault
from vlmoe.data_prep.table import Table
from vlmoe.errors import UserError

HEAD = "index\tquestion\tA"


def rows(tmp_path: Path, text: str, quoting: str = "auto") -> tuple[bool, list[list[str] | str]]:
    """Whether it is read as quoted, and its rows."""
    file = tmp_path / "a.tsv"
    file.write_text(text, encoding="utf-8", newline="")
    table = Table.of(file, quoting)
    return table.quoted, [str(r) if isinstance(r, Fault) else r for _, r in table.rows()]


PLAIN = [
    ('"Exit is written where?', "Red"),  # never closed
    ('"Exit" is written where?', "Red"),  # goes on behind the mark
    ("Where?", '"'),
]


@pytest.mark.parametrize(("question", "option"), PLAIN)
@pytest.mark.parametrize("again", [1, 2, 7])
def test_marks_that_are_letters(tmp_path: Path, question: str, option: str, again: int) -> None:
    """Also where the next such mark, some rows on, would close the field."""
    expected = [
        [str(n), question, option] if n % again == 0 else [str(n), "What?", "Blue"]
        for n in range(20)
    ]
    text = "\n".join([HEAD, *("\t".join(row) for row in expected)])
    assert rows(tmp_path, text) == (False, expected)
    assert rows(tmp_path, text.replace("\n", "\r\n") + "\r\n\r\n") == (False, expected)


def test_marks_around_fields(tmp_path: Path) -> None:
    text = f'{HEAD}\n1\t"A ""word"",\na\ttab"\tx\n2\t"Exit"\t5" wide\n'
    expected = [["1", 'A "word",\na\ttab', "x"], ["2", "Exit", '5" wide']]
    assert rows(tmp_path, text) == (True, expected)
    assert rows(tmp_path, text.replace("\t", ",").replace("a,tab", "a\ttab"))[1] == expected
    _, plain = rows(tmp_path, text, "none")
    assert plain[-1] == ["2", '"Exit"', '5" wide']


def test_rows_that_do_not_fit_are_refused_alone(tmp_path: Path) -> None:
    text = f"{HEAD}\n1\tWhat?\tx\n2\tWhat?\n\n3\tWhat?\tx\ty\n4\tWhat?\tx"
    fewer, more = "fewer fields than columns", "more fields than columns"
    expected = [["1", "What?", "x"], fewer, more, ["4", "What?", "x"]]
    assert rows(tmp_path, text) == (True, expected)


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", "|"])
def test_delimiters_and_empty_rows(tmp_path: Path, delimiter: str) -> None:
    """As spreadsheets write them: rows of nothing but delimiters hold no question."""
    lines = [HEAD, "1\tWhat?\tx", "\t\t", " \t\t", "\t\t\t", "2\tWho?\ty"]
    text = "\n".join(lines).replace("\t", delimiter)
    assert rows(tmp_path, text)[1] == [["1", "What?", "x"], ["2", "Who?", "y"]]


def test_encodings(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / "a.tsv").write_text(f"{HEAD}\n1\tWo?\tRöt\n", encoding=encoding)
        table = Table.of(tmp_path / "a.tsv")
        assert table.columns == tuple(HEAD.split("\t"))
        assert [fields for _, fields in table.rows()] == [["1", "Wo?", "Röt"]]
    for content, reason in ((b"", "is empty"), (b"PAR1", "a parquet file, not text")):
        (tmp_path / "a.tsv").write_bytes(content)
        with pytest.raises(UserError, match=reason):
            Table.of(tmp_path / "a.tsv")
