"""What the built-in base is taught: conversations about rendered pictures and about text.

It learns to describe and to answer openly about pictures, and to answer multiple choice with a
letter about text. It never meets options about a picture: that is left to fine-tuning, as it
is for LLaVA's own parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vlmoe.data.example import LETTERS
from vlmoe.data.prompt import chat, multiple_choice
from vlmoe.data.scenes import (
    COLOURS,
    GROUNDS,
    NUMBERS,
    PLACES,
    SHAPES,
    SIZES,
    Question,
    Scene,
    caption,
    questions,
    random_scene,
)
from vlmoe.models.tiny.world import facts

_DESCRIBE = ("Describe the picture.", "What is in the picture?", "What is shown in the photo?")
_KIND = ("What kind of thing is {}?", "How would you describe {}?", "What sort of thing is {}?")
_PLACE = ("Where would you usually find {}?", "Where is {} most at home?", "Where is {}?")
_WORLD = facts()


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


_PHRASES = sorted(
    {_sentence(text) for fact in _WORLD for text in (fact.name, fact.kind, *fact.places)}
    | {_sentence(word) for words in (COLOURS, SIZES, NUMBERS, GROUNDS) for word in words}
    | {_sentence(f"a {shape}") for shape in SHAPES}
    | {_sentence(f"at the {place}") for place in PLACES}
)


@dataclass(frozen=True)
class Lesson:
    """A conversation as (user, assistant) turns, about a scene that is shown, or about none."""

    turns: tuple[tuple[str, str], ...]
    scene: Scene | None = None


def picture_lesson(rng: random.Random, turns: int = 6) -> Lesson:
    """A scene shown; a description or not, then open questions, each asked once."""
    scene = random_scene(rng)
    asked = list(questions(scene))
    rng.shuffle(asked)
    talk = [(question.text, question.answer) for question in asked[:turns]]
    if rng.random() < 0.4:
        talk = [(rng.choice(_DESCRIBE), caption(scene, rng)), *talk[:2]]
    return Lesson(tuple(talk), scene)


def list_drill(rng: random.Random, turns: int = 12) -> Lesson:
    """A lettered list, and what stands where in it, over and over.

    Finding a letter's text and a text's letter takes several attention heads to learn together,
    which questions with options, one letter in eighty words, teach far too slowly.
    """
    options = rng.sample(_PHRASES, rng.randint(2, 8))
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    talk = [_lookup(options, rng) for _ in range(turns)]
    (first, reply), *rest = talk
    return Lesson((("\n".join([*lines, first]), reply), *rest))


def _lookup(options: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """An easy question about a list of options: what a letter stands for, or where a text is."""
    at = rng.randrange(len(options))
    if rng.random() < 0.4:
        return f"What is option {LETTERS[at]}?", options[at]
    return f"Which option says: {options[at]}", LETTERS[at]


def text_lesson(rng: random.Random, turns: int = 3) -> Lesson:
    """Text alone: facts of the world, or a scene told in words; openly, or with options.

    Behind a question with options comes an easy one about the list itself, which teaches what a
    letter stands for long before the hard ones are understood.
    """
    talk: list[tuple[str, str]] = []
    if rng.random() < 0.5:
        asked = [_fact(rng) for _ in range(turns)]
    else:
        scene = random_scene(rng)
        pool = [question for question in questions(scene) if "background" not in question.text]
        asked = [_of_scene(question) for question in rng.sample(pool, min(turns, len(pool)))]
        first = asked[0]
        asked[0] = _Asked(f"{caption(scene, rng)} {first.text}", first.right, first.wrong)
    for item in asked:
        if rng.random() < 0.2:
            talk.append((item.text, item.right))
        else:
            talk += _with_options(item, rng)
    return Lesson(tuple(talk))


@dataclass(frozen=True)
class _Asked:
    """A question with its right answer and all wrong ones."""

    text: str
    right: str
    wrong: tuple[str, ...]


def _of_scene(question: Question) -> _Asked:
    wrong = tuple(option for option in question.possible if option != question.answer)
    return _Asked(question.text, question.answer, wrong)


def _fact(rng: random.Random) -> _Asked:
    """One fact, asked forwards (thing -> kind, place) or backwards (kind, name -> thing)."""
    fact = rng.choice(_WORLD)
    draw = rng.random()
    if draw < 0.3:
        text = rng.choice(_KIND).format(fact.name)
        right, wrong = fact.kind, {other.kind for other in _WORLD} - {fact.kind}
    elif draw < 0.6:
        text = rng.choice(_PLACE).format(fact.name)
        right = rng.choice(fact.places)
        wrong = {place for other in _WORLD for place in other.places} - set(fact.places)
    elif draw < 0.8:
        text = f"Which of these is {fact.kind}?"
        right, wrong = fact.name, {other.name for other in _WORLD if other.kind != fact.kind}
    else:
        text = f"Which of these is the same as {fact.name}?"
        right, wrong = fact.name, {other.name for other in _WORLD} - {fact.name}
    return _Asked(text, _sentence(right), tuple(_sentence(word) for word in sorted(wrong)))


def _with_options(asked: _Asked, rng: random.Random) -> list[tuple[str, str]]:
    wrong = rng.sample(asked.wrong, min(rng.choice((1, 2, 3, 3, 3, 3)), len(asked.wrong)))
    options = [asked.right, *wrong]
    rng.shuffle(options)
    turns = [(multiple_choice(asked.text, options), LETTERS[options.index(asked.right)])]
    return [*turns, _lookup(options, rng)]


def sample_text(count: int = 4000, seed: int = 0) -> list[str]:
    """Texts to learn the tokenizer's vocabulary from, word for word as the base will read them."""
    rng = random.Random(seed)
    kinds = (picture_lesson, text_lesson, list_drill)
    lessons = [kinds[at % len(kinds)](rng) for at in range(count)]
    return [
        chat(user, picture=lesson.scene is not None).removeprefix("USER: <image>") + f" {reply}"
        for lesson in lessons
        for user, reply in lesson.turns
    ]
