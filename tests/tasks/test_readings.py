"""Letter, option and generate: against the slow way, and whatever the batch."""

from __future__ import annotations

import math
import random

import pytest
import torch
from PIL import Image

from tests import reference
from tests.models_for_tests import llava_text
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data.scenes import random_scene, render
from vlmoe.data.turn import PICTURE, Turn
from vlmoe.errors import UserError
from vlmoe.models.load import Base, load_base
from vlmoe.tasks import readings
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.conversation import conversing
from vlmoe.tasks.parse import parse_answer
from vlmoe.tasks.predict import Predictor
from vlmoe.tasks.prompt import PROMPTS
from vlmoe.tasks.readings import SCORINGS, GeneratePredictor, make_predictor
from vlmoe.tasks.score import Scored, score


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


def examples(count: int = 17) -> list[Example]:
    """Pictures and none, two to four options, questions and options of many lengths."""
    rng = random.Random(0)
    options = ["Red.", "Blue and yellow.", "Green.", "It is a small white square with a dark ring."]
    made = []
    for at in range(count):
        colour = tuple(rng.randrange(256) for _ in range(3))
        image = Image.new("RGB", (50, 40 + at), colour) if at % 4 else None
        question = "What colour is it?" + " Look at the picture again." * (at % 5)
        choices = tuple(rng.sample(options, 2 + at % 3))
        made.append(Example(str(at), image, question, choices, 0, "colour"))
    return made


def values(item: Scored) -> tuple[float, ...]:
    """Probabilities: of the letters, or of an option's token (their geometric mean)."""
    return item.prediction.probabilities or tuple(map(math.exp, item.prediction.scores))


@pytest.mark.parametrize("prompt", ["llava", "paper"])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_answers_depend_neither_on_batch_nor_padding_nor_order(base, scoring, prompt):
    predictor = make_predictor(scoring, base.model, Collator.of(base.reader, prompt=prompt), 6)
    asked = examples()
    alone = {item.example.id: item for item in score(predictor, asked, batch_size=1)}
    shuffled = random.Random(1).sample(asked, len(asked))
    for rows, size in ((asked, 3), (asked, 16), (shuffled, 3), (shuffled, 16)):
        together = score(predictor, rows, batch_size=size)
        assert [item.example.id for item in together] == [row.id for row in rows]
        for item in together:
            one = alone[item.example.id]
            assert item.prediction.choice == one.prediction.choice
            assert item.prediction.text == one.prediction.text
            assert values(item) == pytest.approx(values(one), abs=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_letter_probabilities_are_those_of_the_whole_way(base, prompt):
    """Letters against each other, by the likelihood of a whole sequence for each."""
    predictor = make_predictor("letter", base.model, Collator.of(base.reader, prompt=prompt))
    style, processor = PROMPTS[prompt], base.reader.processor
    for example in examples(6)[1:4]:
        text = llava_text(style, example, picture=True) + f" {style.lead}".rstrip()
        logs = torch.tensor(
            [
                reference.mean_log_likelihood(base.model, processor, example.image, text, f" {x}")
                for x in "ABCD"[: len(example.choices)]
            ]
        )
        (found,) = predictor.choose_all([example])
        assert found.probabilities == pytest.approx(logs.softmax(0).tolist(), abs=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_option_scores_are_mean_log_likelihoods(base, prompt):
    predictor = make_predictor("option", base.model, Collator.of(base.reader, prompt=prompt))
    style = PROMPTS[prompt]
    asked = [example for example in examples(8) if example.image is not None]
    for example, found in zip(asked, predictor.choose_all(asked), strict=True):
        text = llava_text(style, example, picture=True) + f" {style.lead}".rstrip()
        expected = [
            reference.mean_log_likelihood(
                base.model, base.reader.processor, example.image, text, f" {choice}"
            )
            for choice in example.choices
        ]
        assert found.scores == pytest.approx(expected, abs=2e-5)
        assert found.choice == expected.index(max(expected))
        assert found.probabilities == ()


def test_options_need_one_pass(base, monkeypatch):
    predictor = make_predictor("option", base.model, Collator.of(base.reader))
    example = Example("1", Image.new("RGB", (9, 9)), "Which letter?", ("B", "A", "C"), 0)
    calls = []
    language = base.model.model.language_model
    forward = language.forward
    monkeypatch.setattr(
        language, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    )
    (found,) = predictor.choose_all([example])
    predictor.choose_all(examples())
    assert len(calls) == 2
    (letters,) = Predictor(base.model, Collator.of(base.reader)).choose_all([example])
    swapped = torch.tensor([found.scores[at] for at in (1, 0, 2)]).softmax(0).tolist()
    assert swapped == pytest.approx(letters.probabilities, abs=1e-5)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_generated_text_is_greedy(base, prompt):
    predictor = make_predictor("generate", base.model, Collator.of(base.reader, prompt=prompt), 6)
    style = PROMPTS[prompt]
    asked = [example for example in examples(8) if example.image is not None]
    for example, found in zip(asked, predictor.choose_all(asked), strict=True):
        text = llava_text(style, example, picture=True)
        expected = reference.greedy_text(base.model, base.reader.processor, example.image, text, 6)
        assert found.text == expected
        assert found.choice == parse_answer(expected, example.choices)


def test_generating_heeds_no_setting_of_the_models_own(base, monkeypatch):
    """Checkpoints come with sampling switched on and penalties."""
    predictor = make_predictor("generate", base.model, Collator.of(base.reader), 6)
    plain = predictor.choose_all(examples())
    for name, value in {"do_sample": True, "temperature": 9.0, "top_p": 0.5, "num_beams": 3,
                        "repetition_penalty": 5.0, "no_repeat_ngram_size": 1,
                        "min_new_tokens": 5}.items():  # fmt: skip
        monkeypatch.setattr(base.model.generation_config, name, value)
    assert predictor.choose_all(examples()) == plain
    assert base.model.generation_config.num_beams == 3


def test_mode_of_the_model_is_kept(base):
    for scoring in SCORINGS:
        predictor = make_predictor(scoring, base.model, Collator.of(base.reader), 2)
        base.model.train()
        predictor.choose_all(examples(2))
        assert base.model.training
        base.model.eval()
        predictor.choose_all(examples(2))
        assert not base.model.training


def test_workers_give_the_same(base):
    for scoring in ("option", "generate"):
        predictor = make_predictor(scoring, base.model, Collator.of(base.reader), 3)
        alone = score(predictor, examples(7), batch_size=3)
        assert score(predictor, examples(7), batch_size=3, workers=1) == alone


def test_unknown_scoring(base):
    with pytest.raises(UserError, match="unknown scoring 'luck': choose from letter"):
        make_predictor("luck", base.model, Collator.of(base.reader))
    assert isinstance(
        make_predictor("generate", base.model, Collator.of(base.reader)), GeneratePredictor
    )


def test_rows_that_have_ended_are_dropped(base, monkeypatch):
    """Some end at once, some later, some never: each says what it says alone."""
    scenes = [render(random_scene(random.Random(seed))) for seed in range(3)]
    texts = (
        "Describe it.",
        "What colour is the background?",
        "How many shapes are there?",
        "What?",
    )
    asked = [
        Example(text, scene, text, (), UNLABELLED, turns=(Turn(f"{PICTURE}{text}"),))
        for scene in scenes
        for text in texts
    ]
    sizes = []
    real = readings.next_logits

    def counted(model, batch, cache):
        sizes.append(len(batch["input_ids"]))
        return real(model, batch, cache)

    monkeypatch.setattr(readings, "next_logits", counted)
    collator = conversing(Collator.of(base.reader), "all", "refuse")
    predictor = make_predictor("generate", base.model, collator, 12)
    together = [one.text for one in predictor.choose_all(asked)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1
    assert together == [predictor.choose_all([one])[0].text for one in asked]
    assert len({len(text) for text in together}) > 2
