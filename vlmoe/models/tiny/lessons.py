"""What the built-in base is taught: conversations about rendered pictures and about text.

It learns to describe and to answer openly about pictures, and to answer multiple choice with a
letter about text. It never meets options about a picture: that is left to fine-tuning, as it
is for LLaVA's own parts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from vlmoe.data.example import LETTERS
from vlmoe.data.prompt import chat, multiple_choice
from vlmoe.data.scenes import (
    COLOURS,
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


_WORDS = sorted(
    {text.split()[-1] for fact in _WORLD for text in (fact.name, fact.kind, *fact.places)}
    | {*COLOURS, *SHAPES, *(word.capitalize() for word in (*COLOURS, *SIZES, *NUMBERS))}
)
_POOLS = [
    *([_sentence(word) for word in words] for words in (COLOURS, SIZES, NUMBERS)),
    [_sentence(f"a {shape}") for shape in SHAPES],
    [_sentence(f"at the {place}") for place in PLACES],
    sorted({_sentence(fact.kind) for fact in _WORLD}),
    [_sentence(fact.name) for fact in _WORLD],
    sorted({_sentence(place) for fact in _WORLD for place in fact.places}),
]


@dataclass(frozen=True)
class Lesson:
    """A conversation as (user, assistant) turns, about a scene that is shown, or about none.

    A plain one is just its texts, one behind the other, without the marks of a conversation.
    """

    turns: tuple[tuple[str, str], ...]
    scene: Scene | None = None
    plain: bool = False


def picture_lesson(rng: random.Random, turns: int = 6) -> Lesson:
    """A scene shown; a description or not, then open questions, each asked once."""
    scene = random_scene(rng)
    asked = list(questions(scene))
    rng.shuffle(asked)
    talk = [(question.text, question.answer) for question in asked[:turns]]
    if rng.random() < 0.4:
        talk = [(rng.choice(_DESCRIBE), caption(scene, rng)), *talk[:2]]
    return Lesson(tuple(talk), scene)


def word_drill(rng: random.Random) -> Lesson:
    """A lettered list of words, then the words again, each with its letter: recall, very dense.

    Finding the letter of a text takes attention heads of several layers to learn together. One
    letter in eighty words, as in questions with options, teaches that far too slowly.
    """
    options = rng.sample(_WORDS, rng.choice((2, 3, 4, 4, 4, 5)))
    return Lesson(((_list(options), ""), *_lookups(options, rng)), plain=True)


def line_drill(rng: random.Random) -> Lesson:
    """The same with sentences, as they stand among options."""
    options = rng.sample(rng.choice(_POOLS), 4)
    return Lesson(((_list(options), ""), *_lookups(options, rng)), plain=True)


def talk_drill(rng: random.Random) -> Lesson:
    """The same as a conversation."""
    options = rng.sample(rng.choice(_POOLS), 4)
    turns = [(f"Which option says: {text}", letter) for text, letter in _lookups(options, rng)]
    (first, reply), *rest = turns[:8]
    return Lesson(((_list(options) + first, reply), *rest))


def choice_drill(rng: random.Random, turns: int = 3) -> Lesson:
    """The same in the words of a multiple-choice prompt."""
    talk = []
    for _ in range(turns):
        options = rng.sample(rng.choice(_POOLS), 4)
        ((text, letter),) = _lookups(options, rng, 1)
        talk.append((multiple_choice(f"Which option says: {text}", options), letter))
    return Lesson(tuple(talk))


def _list(options: list[str]) -> str:
    lines = [f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False)]
    return "Options:\n" + "".join(lines)


def _lookups(options: list[str], rng: random.Random, count: int = 12) -> list[tuple[str, str]]:
    asked = [rng.randrange(len(options)) for _ in range(count)]
    return [(options[at], LETTERS[at]) for at in asked]


def text_lesson(rng: random.Random, turns: int = 3) -> Lesson:
    """Text alone: facts of the world, or a scene told in words; openly, with options, or both.

    An open answer right before the same question with options parts what is hard: to know the
    answer, and to find its letter.
    """
    told = ""
    if rng.random() < 0.5:
        asked = [_fact(rng) for _ in range(turns)]
    else:
        scene = random_scene(rng)
        told = caption(scene, rng) + " "
        pool = [question for question in questions(scene) if "background" not in question.text]
        asked = [_of_scene(question) for question in rng.sample(pool, min(turns, len(pool)))]
    talk: list[tuple[str, str]] = []
    for item in asked:
        draw = rng.random()
        if draw < 0.6:
            talk.append((item.text, item.right))
        if draw > 0.2:
            talk.append(_with_options(item, rng))
    (first, reply), *rest = talk
    return Lesson(((told + first, reply), *rest))


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


def _with_options(asked: _Asked, rng: random.Random) -> tuple[str, str]:
    wrong = rng.sample(asked.wrong, min(rng.choice((1, 2, 3, 3, 3, 3)), len(asked.wrong)))
    options = [asked.right, *wrong]
    rng.shuffle(options)
    return multiple_choice(asked.text, options), LETTERS[options.index(asked.right)]


def sample_text(count: int = 4000, seed: int = 0) -> list[str]:
    """Texts to learn the tokenizer's vocabulary from, word for word as the base will read them."""
    rng = random.Random(seed)
    kinds = (picture_lesson, text_lesson, talk_drill)
    lessons = [kinds[at % len(kinds)](rng) for at in range(count)]
    return [
        chat(user, picture=lesson.scene is not None).removeprefix("USER: <image>") + f" {reply}"
        for lesson in lessons
        for user, reply in lesson.turns
    ]
