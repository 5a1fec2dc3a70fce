"""The page's own HTML: everything foreign in it is text."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest

from vlmoe.data.turn import Turn
from vlmoe.demo import drawing, markup
from vlmoe.demo.engine import Asked, Choice
from vlmoe.tasks.predict import Prediction

NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Tags(HTMLParser):
    """Collects the tags and the text of a piece of HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def choice(*options: str, name: str = "adapter") -> Choice:
    share = tuple((at + 1) / sum(range(len(options) + 1)) for at in range(len(options)))
    predictions = {
        name: Prediction(len(options) - 1, share),
        "base": Prediction(0, share[::-1]),
    }
    return Choice(options, predictions, Asked({}))


@pytest.mark.parametrize(
    "html",
    [
        markup.note(NASTY),
        markup.note("", spoken=NASTY),
        markup.talk([Turn(NASTY, "Red."), Turn("Why?", NASTY)]),
        markup.status(NASTY, [NASTY]),
        markup.bars(choice("Red.", NASTY, name=NASTY), right=1),
        markup.tokens([NASTY, " a"], [0, 1], range(0)),
        markup.legend([0, 1], NASTY),
        markup.picture(b"", NASTY),
        markup.download(b"", NASTY, "image/png", NASTY),
    ],
)
def test_foreign_text_stays_text(html):
    parsed = Tags(html)
    assert "script" not in parsed.tags
    assert not any(name.startswith("on") for name, _ in parsed.attributes)
    assert "img" not in parsed.tags or parsed.attributes[0][0] == "src"
    assert not any(value == "x" for name, value in parsed.attributes if name == "src")
    if "img" not in parsed.tags and "ul" not in parsed.tags:
        assert NASTY in parsed.text


def test_bars():
    html = markup.bars(choice("Red.", "Blue.", "Green."), right=1)
    shares = [float(share) for share in re.findall(r'data-probability="([\d.]+)"', html)]
    assert shares[::2] == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=1e-6)
    assert sum(shares[::2]) == pytest.approx(1, abs=1e-5)
    assert sum(shares[1::2]) == pytest.approx(1, abs=1e-5)
    rows = html.split("<tr>")[2:]
    assert ["right answer" in row for row in rows] == [False, True, False]
    chosen = [re.findall(r"<td( class=\"chosen\")?", row) for row in rows]
    assert [[bool(cell) for cell in row] for row in chosen] == [
        [False, True],
        [False, False],
        [True, False],
    ]
    assert "right answer" not in markup.bars(choice("Red.", "Blue."))


def test_the_pictures_tokens_are_one():
    html = markup.tokens(["a", "<image>", "<image>", "<image>", "b"], [0, 2, 1, 2, 3], range(1, 4))
    text = " ".join(Tags(html).text.split())
    assert text == "a0 [picture: 3 tokens, 2 led by expert]2 b3"


def test_a_link_holds_what_it_saves():
    html = markup.download(json.dumps({"a": 1}).encode(), "x.json", "application/json", "JSON")
    (data,) = re.findall(r'href="data:application/json;base64,([^"]+)"', html)
    assert json.loads(b64decode(data)) == {"a": 1}


@pytest.mark.parametrize("expert", range(20))
def test_numbers_can_be_read_on_every_colour(expert):
    """WCAG: a contrast of at least 4.5 to 1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted(map(luminance, (drawing.colour(expert), drawing.ink(expert))))
    assert (light + 0.05) / (dark + 0.05) >= 4.5
