"""Examples -> tensors: prompt, labels, pictures, padding, limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.models_for_tests import llava_text
from vlmoe.data.example import Example
from vlmoe.errors import UserError
from vlmoe.models.forward import logits_at
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.prompt import LLAVA, PROMPTS

RED = Image.new("RGB", (40, 20), (200, 10, 10))
EXAMPLE = Example("7", RED, "What colour is it?", ("Red.", "Blue.", "Green."), 1, "colour")
LONGER = replace(EXAMPLE, id="8", question="What colour is the thing at the top left of it?")
TEXT = replace(EXAMPLE, id="9", image=None)


@pytest.fixture(scope="module")
def base():
    return load_base("tiny")


@pytest.fixture(scope="module")
def collator(base):
    return Collator.of(base.reader)


def test_labels_stand_on_the_letter_and_the_end_only(collator):
    batch = collator.training([EXAMPLE, LONGER])
    tokenizer = collator.tokenizer
    for row in batch["labels"]:
        assert tokenizer.convert_ids_to_tokens(row.tolist()) == ["▁B", "</s>"]
    # Read off the tokens before them: the end of the prompt, and the letter.
    read = batch["input_ids"].flatten()[batch["read_at"]]
    assert read[:, 1:].tolist() == batch["labels"][:, :-1].tolist()
    assert tokenizer.convert_ids_to_tokens(read[:, 0].tolist()) == [":", ":"]


def test_tokens_are_those_of_the_whole_text(collator):
    ids = collator.training([EXAMPLE])["input_ids"][0].tolist()
    whole = collator.reader.processor(
        images=RED, text=llava_text(LLAVA, EXAMPLE, picture=True) + " B</s>", return_tensors="pt"
    )
    assert ids == whole["input_ids"][0].tolist()


@pytest.mark.parametrize("style", PROMPTS)
def test_every_style_trains_on_its_answer_and_the_end(base, style):
    collator = Collator.of(base.reader, prompt=style)
    batch = collator.training([EXAMPLE, TEXT])
    tokenizer = collator.tokenizer
    spoken = {"paper": "The answer is B."}.get(style, "B")
    for taught, at in zip(batch["labels"], batch["read_at"], strict=True):
        behind = batch["input_ids"].flatten()[at + 1]
        assert taught.tolist() == behind.tolist()
        assert tokenizer.decode(taught) == f"{spoken}</s>"
        assert len(taught) == len(collator.answer)
    whole = llava_text(PROMPTS[style], EXAMPLE, picture=True) + f" {spoken}</s>"
    expected = collator.reader.processor(images=RED, text=whole, return_tensors="pt")
    assert collator.training([EXAMPLE])["input_ids"].tolist() == expected["input_ids"].tolist()


@pytest.mark.parametrize("style", PROMPTS)
def test_letter_follows_what_is_scored(base, style):
    """The scored prompt and the letter are the beginning of the row that is trained on."""
    collator = Collator.of(base.reader, prompt=style)
    trained = collator.training([EXAMPLE])["input_ids"][0].tolist()
    scored = collator.scoring([EXAMPLE])["input_ids"][0].tolist()
    assert [*scored, collator.letter_ids[1]] == trained[: len(scored) + 1]
    asked = collator.asking([EXAMPLE], room=8)["input_ids"][0].tolist()
    assert [*asked, *collator.answer.lead] == scored


@pytest.mark.parametrize("style", PROMPTS)
def test_options_are_the_tokens_of_their_text(base, style):
    collator = Collator.of(base.reader, prompt=style)
    longer = replace(EXAMPLE, choices=("Red.", " Blue and yellow. "))
    batch = collator.options([longer, EXAMPLE])
    assert batch["option_ids"].shape == batch["option_mask"].shape == batch["read_at"].shape
    assert batch["option_mask"].any(-1).tolist() == [[True, True, False], [True, True, True]]
    (tree,) = batch["input_ids"]  # one picture, five texts
    for row, example in enumerate((longer, EXAMPLE)):
        for option, text in enumerate(example.choices):
            kept = batch["option_mask"][row, option] == 1
            ids = batch["option_ids"][row, option][kept].tolist()
            at = batch["read_at"][row, option][kept]
            lead = " " + PROMPTS[style].lead
            whole = llava_text(PROMPTS[style], example, picture=True) + f"{lead}{text.strip()}"
            expected = collator.reader.processor(images=RED, text=whole)["input_ids"][0]
            assert expected[-len(ids) :] == ids
            # Read off the token before it, in the place where that stands.
            assert tree[at].tolist() == expected[-len(ids) - 1 : -1]
            places = batch["position_ids"][0, at].tolist()
            assert places == list(range(len(expected)))[-len(ids) - 1 : -1]


def test_generated_rows_end_together_and_padding_is_masked(collator):
    batch = replace(collator, sharing_fault="as a test has it").asking([EXAMPLE, LONGER], room=1)
    short, long = batch["attention_mask"]
    assert long.all()
    assert short.tolist() == sorted(short.tolist())  # zeros, then ones
    pad = collator.tokenizer.pad_token_id
    assert (batch["input_ids"][0][short == 0] == pad).all()
    assert batch["feature_of"].tolist() == [*range(64)] * 2
    assert batch["position_ids"][1].tolist() == list(range(len(long)))
    assert batch["position_ids"][0][short == 1].tolist() == list(range(int(short.sum())))
    assert batch["pixel_values"].shape[0] == 1


def test_prompts_to_write_on_share_their_picture_where_that_is_exact(collator):
    batch = collator.asking([EXAMPLE, LONGER], room=1)
    alone = replace(collator, sharing_fault="as a test has it").asking([EXAMPLE, LONGER], room=1)
    assert len(batch["input_ids"]) == 1
    there = batch["rows_at"] >= 0
    assert torch.equal(there.long(), alone["attention_mask"])
    ids = batch["input_ids"].flatten()[batch["rows_at"].clamp(min=0)]
    assert torch.equal(ids[there], alone["input_ids"][there])


def test_questions_about_equal_pictures_share_a_row(base, collator):
    again = replace(LONGER, image=RED.copy())  # decoded anew, as from a file
    other = replace(EXAMPLE, image=Image.new("RGB", (40, 20), (0, 10, 10)))
    batch = collator.training([EXAMPLE, other, again])
    assert batch["input_ids"].shape[0] == 2
    assert batch["pixel_values"].shape[0] == 2
    assert sorted(batch["picture_uses"].tolist()) == [1, 2]
    image_id = base.model.config.image_token_id
    assert (batch["input_ids"] == image_id).sum() == 2 * base.reader.image_tokens
    alone = replace(collator, sharing_fault="as a test has it").training([EXAMPLE, other, again])
    assert alone["feature_of"][::64].tolist() == [0, 64, 0]
    assert (alone["input_ids"] == image_id).sum() == 3 * base.reader.image_tokens
    assert torch.equal(alone["pixel_values"], batch["pixel_values"])


def test_each_place_gets_its_own_picture(collator):
    """Trees are put into rows by their length; the pictures follow them."""
    shades = [Image.new("RGB", (20, 20), (40 * at, 0, 0)) for at in range(4)]
    counts = (1, 3, 1, 2)
    asked = [
        replace(EXAMPLE, image=shade, question="What is it? " * (at + 1))
        for shade, count in zip(shades, counts, strict=True)
        for at in range(count)
    ]
    batch = collator.training(asked)
    image_id = collator.tokenizer.convert_tokens_to_ids("<image>")
    starts = torch.nonzero(batch["input_ids"].flatten() == image_id).flatten()[::64]
    uses = batch["uses"].flatten()[starts].tolist()
    assert batch["picture_uses"][batch["feature_of"][::64] // 64].tolist() == uses
    assert batch["picture_uses"].tolist() == list(counts)


def test_every_picture_keeps_all_of_its_tokens(base, collator):
    other = replace(LONGER, image=Image.new("RGB", (9, 9)))
    batch = collator.training([EXAMPLE, other])
    image_id = base.model.config.image_token_id
    assert ((batch["input_ids"] == image_id).sum(-1) == base.reader.image_tokens).all()
    assert base.reader.image_tokens == 64


def test_with_and_without_picture_in_one_batch(base, collator):
    batch = collator.training([TEXT, EXAMPLE])
    assert batch["pixel_values"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        together = logits_at(base.model, collator.scoring([TEXT, EXAMPLE]))
        apart = [logits_at(base.model, collator.scoring([one]))[0] for one in (TEXT, EXAMPLE)]
    torch.testing.assert_close(together, torch.stack(apart), atol=2e-4, rtol=1e-4)


def test_pad_shows_the_whole_picture_and_crop_its_middle(base):
    wide = Image.new("RGB", (60, 20), (0, 255, 0))
    wide.paste((255, 0, 0), (0, 0, 10, 20))  # red at the far left: cropped away
    red_minus_green = {
        fit: (pixels := base.reader.pixels([wide], fit)["pixel_values"][0])[0] - pixels[1]
        for fit in ("crop", "pad")
    }
    assert red_minus_green["crop"].max() < 0
    assert red_minus_green["pad"].max() > 0
    with pytest.raises(UserError, match="unknown image fit"):
        Collator.of(base.reader, "stretch")


def test_too_long_is_refused_by_id_and_never_cut(base, collator):
    long = replace(EXAMPLE, id="long one", question="red " * 1000)
    assert collator.length(long, picture=True) > collator.max_length == 1024
    with pytest.raises(UserError, match="long one"):
        collator.training([long])
    room = collator.max_length - collator.length(EXAMPLE, picture=True) + len(collator.answer)
    collator.asking([EXAMPLE], room=room)
    with pytest.raises(UserError, match="example 7 takes 1025 tokens"):
        collator.asking([EXAMPLE], room=room + 1)
    with pytest.raises(UserError, match="example 7"):
        collator.options([replace(EXAMPLE, choices=("red " * 500, "Blue."))])


def test_length_counts_the_picture_without_loading_it(collator):
    size = collator.training([EXAMPLE])["input_ids"].shape[1]
    assert collator.length(replace(EXAMPLE, image=None), picture=True) == size


def test_unlabelled_and_too_many_options(collator):
    with pytest.raises(UserError, match="has no answer"):
        collator.training([replace(EXAMPLE, answer=-1)])
    many = replace(EXAMPLE, choices=tuple(f"{n}." for n in range(20)))
    with pytest.raises(UserError, match="20 options"):
        collator.scoring([many])
