"""The page's own pieces of HTML. Whatever came from a visitor or a model is escaped here."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from vlmoe.data.example import LETTERS
from vlmoe.data.turn import Turn
from vlmoe.demo.drawing import colour, ink
from vlmoe.demo.engine import Choice

STYLE = """
button:focus-visible, a:focus-visible, input:focus-visible, textarea:focus-visible,
[tabindex]:focus-visible { outline: 3px solid var(--color-accent) !important; outline-offset: 1px }
button[role="tab"][aria-selected="true"] { color: var(--link-text-color) !important }
.status, .note, .legend, .tokens, .bars { font-size: var(--text-md); color: var(--body-text-color) }
#title h1, .status, .note { margin: 0 } .status b { font-weight: 600 }
.note { color: var(--body-text-color-subdued); min-height: 1.4em }
.talk { display: flex; flex-direction: column-reverse; justify-content: flex-end; padding: .8em;
  height: 360px; overflow-y: auto;
  border: 1px solid var(--border-color-primary); border-radius: var(--block-radius) }
.talk div { display: flex; flex-direction: column; gap: .6em }
.talk p { margin: 0; padding: .4em .7em; max-width: 85%; white-space: pre-wrap;
  overflow-wrap: anywhere; border-radius: .5em; color: var(--body-text-color) }
.talk .asked { align-self: flex-end; background: var(--color-accent-soft) }
.talk .said { align-self: flex-start; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); min-width: 2em; min-height: 1.4em }
.talk .note { margin: auto; color: var(--body-text-color-subdued) }
.bars { width: 100%; border: 0; border-collapse: collapse; table-layout: fixed }
.bars caption { text-align: left; color: var(--body-text-color-subdued); padding-bottom: .3em }
.bars th, .bars td { padding: .4em .4em; text-align: left; vertical-align: top; font-weight: 400;
  border: 0; border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere }
.bars thead th { font-weight: 600 }
.bars td.chosen { font-weight: 700 }
.bars .bar { height: .7em; border-radius: .2em; margin-top: .3em;
  background: var(--border-color-primary) }
.bars .bar span { display: block; height: 100%; border-radius: .2em;
  background: var(--color-accent) }
.bars .right { display: block; font-size: var(--text-sm); font-weight: 600 }
.tokens { line-height: 2.1; overflow-wrap: anywhere }
#bars table, #bars tr { border: 0 }
.tokens span { display: inline-block; line-height: 1.4; padding: .15em .3em;
  border-radius: .3em; white-space: pre-wrap }
.tokens sub { font-size: .7em; margin-left: .15em; color: inherit }
.legend { list-style: none; padding: 0; margin: .5em 0; display: flex; flex-wrap: wrap; gap: .3em }
.legend li { margin: 0; padding: .1em .5em; border-radius: .3em; font-size: var(--text-sm) }
.maps { display: flex; flex-wrap: wrap; gap: 1em }
.maps figure { flex: 1 1 280px; margin: 0; max-width: 560px }
.maps img, .patches img { width: 100%; height: auto; border-radius: .4em; background: white }
.patches img { max-width: 512px }
.downloads a { display: inline-block; margin: 0 1em .5em 0; text-decoration: underline;
  color: var(--link-text-color) }
.sr-only { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%) }
"""


def note(text: str, spoken: str = "") -> str:
    """A line that screen readers speak when it changes, and more that only they do."""
    more = f'<span class="sr-only">{escape(spoken)}</span>' if spoken else ""
    return f'<p class="note" role="status">{escape(text)}{more}</p>'


def talk(turns: Sequence[Turn]) -> str:
    """A conversation, scrolled to its end by its style alone.

    It is drawn anew with every token, so the whole answer is spoken by ``note`` instead.
    """
    said = "".join(
        f'<p class="asked"><span class="sr-only">Question: </span>{escape(turn.question)}</p>'
        f'<p class="said"><span class="sr-only">Answer: </span>{escape(turn.answer)}</p>'
        for turn in turns
    )
    said = said or '<p class="note">Choose a picture and ask about it.</p>'
    return (
        '<div class="talk" role="log" aria-live="off" aria-label="Conversation" tabindex="0">'
        f"<div>{said}</div></div>"
    )


def status(text: str, names: Sequence[str]) -> str:
    """How far the model is, and which adapters there are."""
    adapters = ", ".join(names) or "none"
    return (
        f'<p class="status" role="status"><b>{escape(text)}</b><br>Adapters: {escape(adapters)}</p>'
    )


def bars(choice: Choice, right: int | None = None) -> str:
    """A row for every option, a column of bars for every model that was asked.

    Args:
        choice: what they chose.
        right: which option is right, where that is known.
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in choice.predictions)
    rows = []
    for at, option in enumerate(choice.options):
        mark = '<span class="right">\u2713 right answer</span>' if at == right else ""
        cells = "".join(
            _bar(prediction.probabilities[at], prediction.choice == at)
            for prediction in choice.predictions.values()
        )
        label = f"<b>{LETTERS[at]}.</b> {escape(option)}{mark}"
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    return (
        '<table class="bars"><caption>How likely each letter is, among these options</caption>'
        f'<thead><tr><th scope="col">Option</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def tokens(texts: Sequence[str], leading: Sequence[int], picture: range) -> str:
    """Tokens on the colour of their leading expert; the picture's many as one."""
    parts = []
    for at, (text, expert) in enumerate(zip(texts, leading, strict=True)):
        if at not in picture:
            parts.append(_chip(text, expert))
        elif at == picture.start:
            most, count = Counter(leading[picture.start : picture.stop]).most_common(1)[0]
            parts.append(_chip(f"[picture: {len(picture)} tokens, {count} led by expert]", most))
    return f'<div class="tokens">{"".join(parts)}</div>'


def legend(leading: Iterable[int], what: str) -> str:
    """How many patches or tokens each expert leads, most first, on its colour."""
    items = "".join(
        f'<li style="{_paint(expert)}">expert {expert}: {count}</li>'
        for expert, count in Counter(leading).most_common()
    )
    return f'<ul class="legend" aria-label="{escape(what)} led by each expert">{items}</ul>'


def picture(png: bytes, description: str) -> str:
    """A picture inside the page, with its description for those who do not see it."""
    return f'<img src="{_data(png, "image/png")}" alt="{escape(description)}">'


def download(content: bytes, name: str, kind: str, label: str) -> str:
    """A link that saves bytes which the page already has; no file lies on the server."""
    return f'<a download="{escape(name)}" href="{_data(content, kind)}">{escape(label)}</a>'


def _bar(probability: float, chosen: bool) -> str:
    mark = '<span class="sr-only"> chosen</span>' if chosen else ""
    kind = ' class="chosen"' if chosen else ""
    return (
        f'<td{kind} data-probability="{probability:.6f}">{100 * probability:.1f}\u202f%{mark}'
        f'<div class="bar"><span style="width:{100 * probability:.2f}%"></span></div></td>'
    )


def _chip(text: str, expert: int) -> str:
    shown = escape(text.rstrip("\n")) or "\u23ce"
    after = "<br>" if text.endswith("\n") else " "
    title = f'title="expert {expert}"'
    return f'<span {title} style="{_paint(expert)}">{shown}<sub>{expert}</sub></span>{after}'


def _paint(expert: int) -> str:
    return f"background:{colour(expert)};color:{ink(expert)}"


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
