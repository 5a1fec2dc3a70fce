"""Conversations as tensors: what is taught, several pictures, what is cut; options among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from vlmoe.data.described import FREE, Described
from vlmoe.data.example import UNLABELLED, Example
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.kinds import task_of
from vlmoe.train.loop import answer_loss

RED, BLUE = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
TALK = Example(
    "talk",
    RED,
    "And now?",
    (),
    UNLABELLED,
    turns=(
        Turn("<image>What is it?", "A circle."),
        Turn("<image>And this?", "A big square."),
        Turn("Sure?", "Yes."),
    ),
    references=("Yes.",),
    more=(BLUE,),
)
CHOICE = Example("choice", RED, "Which?", ("red", "blue"), 1)


@pytest.fixture(scope="module")
def base():
    return load_base("tiny", dtype="fp32")


def task(base, **options):
    return task_of(base.reader, Described(FREE), **options)


def words(base, ids):
    return base.reader.tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("train_on", "taught"),
    [("all", "A circle.</s> A big square.</s> Yes.</s>"), ("last", "Yes.</s>")],
)
def test_the_answers_are_taught_with_their_ends(base, train_on, taught):
    batch = task(base, train_on=train_on).training([TALK])
    assert words(base, batch["labels"]).split() == taught.split()
    assert batch["input_ids"].shape[0] == 1  # one sequence, whatever is taught of it
    assert batch["read_at"].shape == batch["labels"].shape
    tokens = batch["input_ids"].flatten()
    assert torch.equal(tokens[batch["read_at"] + 1], batch["labels"])
    assert len(batch["pixel_values"]) == 2
    assert batch["picture_uses"].tolist() == [1, 1]
    assert batch["uses"].max() == 1


def test_the_loss_is_that_of_each_answer_by_itself(base):
    """In the conversation up to it, as the model is asked."""
    whole = answer_loss(base.model, task(base).training([TALK]))
    parts = 0.0
    for end in range(1, 4):
        turns = TALK.turns[:end]
        shown = replace(TALK, turns=turns, more=() if end == 1 else (BLUE,))
        parts += answer_loss(base.model, task(base, train_on="last").training([shown]))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-4)


def test_with_options_and_without_pictures_in_one_batch(base):
    free = task(base)
    text = Example("text", None, "Why?", (), UNLABELLED, turns=(Turn("Why?", "So."),),
                   references=("So.",))  # fmt: skip
    together = answer_loss(base.model, free.training([TALK, CHOICE, text]))
    apart = sum(answer_loss(base.model, free.training([one])) for one in (TALK, CHOICE, text))
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)
    plain = task_of(base.reader, Described())
    torch.testing.assert_close(
        answer_loss(base.model, free.training([CHOICE])),
        answer_loss(base.model, plain.training([CHOICE])),
    )


def test_pictures_stand_at_their_places(base):
    """Swapped, they are two other sequences."""
    swapped = replace(TALK, image=BLUE, more=(RED,))
    losses = [float(answer_loss(base.model, task(base).training([one]))) for one in (TALK, swapped)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_questions_about_the_same_pictures_share_them(base):
    other = replace(TALK, turns=(*TALK.turns[:2], Turn("Really?", "No.")), references=("No.",))
    free = task(base, train_on="last")
    batch = free.training([TALK, other])
    assert batch["input_ids"].shape[0] == 1
    assert "seen_until" in batch
    assert batch["uses"].max() == 2
    apart = sum(answer_loss(base.model, free.training([one])) for one in (TALK, other))
    torch.testing.assert_close(answer_loss(base.model, batch), apart, rtol=1e-5, atol=1e-4)


def test_length_is_that_of_the_sequence(base):
    free = task(base)
    assert free.length(TALK, picture=True) == free.training([TALK])["input_ids"].numel()
    blind = replace(TALK.blind(), measure=lambda: (64, 64), measures=(lambda: (64, 64),))
    assert free.length(blind, picture=True) == free.length(TALK, picture=True)
    unknown = replace(TALK.blind(), measure=lambda: None, measures=(lambda: None,))
    assert free.length(unknown, picture=True) == free.length(TALK, picture=True)
    assert free.length(CHOICE, picture=True) == free.training([CHOICE])["input_ids"].numel()


def test_cut_between_two_turns(base, monkeypatch):
    whole = task(base)
    lengths = [
        whole.length(replace(TALK, turns=TALK.turns[:end], more=TALK.more[: end - 1]), picture=True)
        for end in (1, 2, 3)
    ]
    for most, left in ((lengths[2], 3), (lengths[2] - 1, 2), (lengths[1], 2), (lengths[1] - 1, 1),
                       (lengths[0] - 1, 1)):  # fmt: skip
        cutting = task(base, too_long="cut")
        monkeypatch.setattr(type(cutting.collator), "max_length", most)
        assert cutting.cuts(TALK, picture=True) == 3 - left
        assert cutting.length(TALK, picture=True) == lengths[left - 1]
        if lengths[left - 1] > most:
            continue  # not even one turn fits: it is left out
        batch = cutting.training([TALK])
        assert batch["input_ids"].numel() == lengths[left - 1]
        assert len(batch["pixel_values"]) == (1 if left == 1 else 2)
        assert task(base).cuts(TALK, picture=True) == 0


def test_an_open_question_is_not_taught(base):
    open_one = replace(TALK, turns=(*TALK.turns[:2], Turn("Sure?")), references=())
    with pytest.raises(UserError, match="talk has no answer"):
        task(base).training([open_one])
    assert task(base).length(open_one, picture=True) < task(base).length(TALK, picture=True)


def test_words_are_said_and_judged_and_options_chosen(base):
    free = task(base)
    scored = free.answers(base.model, [CHOICE, TALK, CHOICE], batch_size=2)
    assert [item.example.id for item in scored] == ["choice", "talk", "choice"]
    assert [item.prediction.choice is None for item in scored] == [False, True, False]
    said = scored[1]
    assert isinstance(said.prediction.text, str)
    assert set(said.measures) == {"exact_match", "token_f1", "log_likelihood"}
    loss = answer_loss(base.model, task(base, train_on="last").training([TALK]))
    tokens = len(task(base, train_on="last").training([TALK])["labels"])
    assert said.measures["log_likelihood"] == pytest.approx(-float(loss) / tokens, rel=1e-4)
    numbers = free.metrics(scored)
    assert numbers["n"] == 3
    assert numbers["scores"]["exact_match"]["n"] == 1
    assert numbers["unparsed"] == 0
    assert "exact_match" in free.line(numbers)
    assert "log_likelihood" in free.table({"base": numbers})
    assert "validation_token_f1" in free.validation(numbers)


def test_the_size_of_a_batch_changes_nothing(base):
    asked = [TALK, replace(TALK, id="b", image=BLUE, more=(RED,)),
             Example("c", None, "Hi", (), UNLABELLED, turns=(Turn("Who are you?", "I."),),
                     references=("I.",))]  # fmt: skip
    one, three = (task(base).answers(base.model, asked, batch_size=size) for size in (1, 3))
    assert [item.prediction.text for item in one] == [item.prediction.text for item in three]
    for a, b in zip(one, three, strict=True):
        assert a.measures == pytest.approx(b.measures, rel=1e-4)
