"""What the built-in base is taught: conversations about rendered pictures and about text.

It learns to describe and to answer openly about pictures, and to answer multiple choice with a
letter about text, at times beside a picture that has nothing to do with it. It never meets options
about a picture: that is left to fine-tuning, as it is for LLaVA's own parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlmoe.data.example import LETTERS
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
from vlmoe.data.turn import PICTURE
from vlmoe.lessons.world import USUAL, facts
from vlmoe.models.families.llava import chat
from vlmoe.tasks.prompt import INSTRUCTION, multiple_choice

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


# What things are, and what they are like: thing -> answer.
_TABLES = [{fact.name: fact.kind for fact in _WORLD}, *USUAL.values()]

# LLaVA-1.5's own way to ask for a short answer.
_IN_WORDS = "Answer the question using a single word or phrase."


class Turn(NamedTuple):
    """What the user says and the assistant's reply.

    Attributes:
        user: a question, with options or without.
        reply: the answer or its letter.
        stands_for: the text that a lettered reply stands for.
        about: all words for the thing that is asked about.
    """

    user: str
    reply: str
    stands_for: str = ""
    about: tuple[str, ...] = ()


# The words of an answer that carry no meaning of their own.
_FUNCTION_WORDS = frozenset(
    ("a", "an", "the", "at", "in", "on", "by", "to", "along", "around", "over", "under")
)


def meaning(turn: Turn) -> list[str]:
    """The content words of the answer, behind its letter if it is one; of long texts none."""
    words = (turn.stands_for or turn.reply).rstrip(".").split()
    return [word for word in words if word.lower() not in _FUNCTION_WORDS] if len(words) < 6 else []


@dataclass(frozen=True)
class Lesson:
    """A conversation about a scene that is shown, or about none.

    A plain one is just its texts, one behind the other, without the marks of a conversation.
    """

    turns: tuple[Turn, ...]
    scene: Scene | None = None
    plain: bool = False


def picture_lesson(rng: random.Random, turns: int = 6) -> Lesson:
    """A scene shown; a description or not, then open questions, each asked once."""
    scene = random_scene(rng)
    asked = list(questions(scene))
    rng.shuffle(asked)
    talk = [
        Turn(question.text, question.answer, about=_words(question)) for question in asked[:turns]
    ]
    if rng.random() < 0.4:
        talk = [Turn(rng.choice(_DESCRIBE), caption(scene, rng)), *talk[:2]]
    return Lesson(tuple(talk), scene)


def picture_drill(rng: random.Random) -> Lesson:
    """A scene shown, then places, each with what is there, and things, each with its place.

    To find what a question asks about, very dense: a whole scene in the tokens of one question.
    """
    scene = random_scene(rng)
    there = {thing.place: thing for thing in scene.things}
    talk = []
    for place in PLACES:
        thing = there.get(place)
        said = f"{thing.size} {thing.colour} {thing.shape}" if thing else "nothing"
        talk.append(Turn(f"{place}:", said))
    for thing in scene.things:
        for name in (thing.colour, thing.shape, f"{thing.colour} {thing.shape}"):
            alike = [other for other in scene.things if name in f"{other.colour} {other.shape}"]
            if alike == [thing]:
                talk.append(Turn(f"{name}:", f"{thing.place} {thing.size}"))
    rng.shuffle(talk)
    return Lesson((Turn(f"{PICTURE}\n", ""), *talk[:9]), scene, plain=True)


def word_drill(rng: random.Random, lookups: int = 12) -> Lesson:
    """A lettered list of words, then the words again, each with its letter: recall, very dense.

    Finding the letter of a text takes attention heads of several layers to learn together. One
    letter in eighty words, as in questions with options, teaches that far too slowly.
    """
    options = rng.sample(_WORDS, rng.choice((2, 3, 4, 4, 4, 5)))
    lines = [f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False)]
    asked = [rng.randrange(len(options)) for _ in range(lookups)]
    talk = [Turn(options[at], LETTERS[at]) for at in asked]
    return Lesson((Turn("Options:\n" + "".join(lines), ""), *talk), plain=True)


def choice_drill(rng: random.Random, turns: int = 3) -> Lesson:
    """The same in the words of a multiple-choice prompt, which gives the answer away."""
    talk = []
    for _ in range(turns):
        right, *wrong = rng.sample(rng.choice(_POOLS), 4)
        talk.append(_with_options(_Asked(f"Which option says: {right}", right, tuple(wrong)), rng))
    return Lesson(tuple(talk))


def text_lesson(rng: random.Random, turns: int = 3) -> Lesson:
    """Text alone: facts of the world, or a scene told in words; asked openly or with options."""
    told = ""
    if rng.random() < 0.5:
        asked = [_fact(rng) for _ in range(turns)]
    else:
        scene = random_scene(rng)
        told = caption(scene, rng) + " "
        pool = [question for question in questions(scene) if "background" not in question.text]
        asked = [_of_scene(question) for question in rng.sample(pool, min(turns, len(pool)))]
    first, *rest = [
        _with_options(item, rng)
        if rng.random() < 0.7
        else Turn(item.text, item.right, about=item.about)
        for item in asked
    ]
    return Lesson((first._replace(user=told + first.user), *rest))


def distracted_lesson(rng: random.Random, turns: int = 3) -> Lesson:
    """Open questions about a scene, a list of things that have nothing to do with it in between.

    What a question asks about is fetched over the length of a list, as options will make it.
    """
    scene = random_scene(rng)
    asked = list(questions(scene))
    talk = []
    for question in rng.sample(asked, min(turns, len(asked))):
        text = question.text
        if rng.random() < 0.75:
            other = rng.sample(rng.choice(_POOLS[-3:]), rng.choice((2, 3, 4, 4)))
            text = f"{text}\n{_lettered(other)}\n{_IN_WORDS}"
        talk.append(Turn(text, question.answer, about=_words(question)))
    return Lesson(tuple(talk), scene)


def choice_lesson(rng: random.Random, turns: int = 3) -> Lesson:
    """Text with options before or behind the question, at times beside an unrelated picture.

    Options that come first cannot be held against the question as they are read: the answer has
    to be known and then found among them.
    """
    scene, told = None, ""
    if rng.random() < 0.35:
        other = random_scene(rng)
        told = caption(other, rng) + "\n"
        pool = [question for question in questions(other) if "background" not in question.text]
        asked = [_of_scene(question) for question in rng.sample(pool, min(turns, len(pool)))]
    else:
        asked = [_usual(rng) if rng.random() < 0.6 else _fact(rng) for _ in range(turns)]
        scene = random_scene(rng) if rng.random() < 0.6 else None
    first, *rest = [_with_options(item, rng, first=rng.random() < 0.5) for item in asked]
    return Lesson((first._replace(user=told + first.user), *rest), scene)


def fact_drill(rng: random.Random, lookups: int = 12) -> Lesson:
    """A lettered list of answers, then things, each with the letter of its answer.

    The same as ``word_drill``, but the word to find is not in the text: it has to come to mind.
    Now and then it is in the text after all, which is the way into the rest.
    """
    table = rng.choice(_TABLES)
    if rng.random() < 0.3:
        table = {answer: answer for answer in table.values()}
    options = rng.sample(sorted(set(table.values())), rng.choice((2, 3, 4, 4)))
    lines = [f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False)]
    listed = "Options:\n" + "".join(lines)
    things = [thing for thing, answer in table.items() if answer in options]
    talk = [
        Turn(f" {thing}", LETTERS[options.index(table[thing])], table[thing])
        for thing in rng.choices(things, k=lookups)
    ]
    if rng.random() < 0.7:
        return Lesson((Turn(listed, ""), *talk), plain=True)
    return Lesson((Turn(f"{PICTURE}\n{listed}", ""), *talk), random_scene(rng), plain=True)


@dataclass(frozen=True)
class _Asked:
    """A question with its right answer and all wrong ones."""

    text: str
    right: str
    wrong: tuple[str, ...]
    about: tuple[str, ...] = ()


def _words(question: Question) -> tuple[str, ...]:
    thing = question.about
    return (thing.size, thing.colour, thing.shape, *thing.place.split()) if thing else ()


def _of_scene(question: Question) -> _Asked:
    wrong = tuple(option for option in question.possible if option != question.answer)
    return _Asked(question.text, question.answer, wrong, _words(question))


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


def _usual(rng: random.Random) -> _Asked:
    """What a thing is like as a rule."""
    question, answers = rng.choice(list(USUAL.items()))
    thing, answer = rng.choice(list(answers.items()))
    wrong = sorted(set(answers.values()) - {answer})
    return _Asked(question.format(thing), _sentence(answer), tuple(map(_sentence, wrong)))


def _lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def _with_options(asked: _Asked, rng: random.Random, *, first: bool = False) -> Turn:
    wrong = rng.sample(asked.wrong, min(rng.choice((1, 2, 3, 3, 3, 3)), len(asked.wrong)))
    options = [asked.right, *wrong]
    rng.shuffle(options)
    letter = LETTERS[options.index(asked.right)]
    text = multiple_choice(asked.text, options)
    if first:
        text = f"{_lettered(options)}\n{asked.text}\n{INSTRUCTION}"
    return Turn(text, letter, asked.right, asked.about)


def sample_text(count: int = 4000, seed: int = 0) -> list[str]:
    """Texts to learn the tokenizer's vocabulary from, word for word as the base will read them."""
    rng = random.Random(seed)
    kinds = (picture_lesson, text_lesson, choice_drill)
    lessons = [kinds[at % len(kinds)](rng) for at in range(count)]
    return [
        chat(turn.user, picture=lesson.scene is not None).removeprefix("USER: <image>")
        + f" {turn.reply}"
        for lesson in lessons
        for turn in lesson.turns
    ]
