"""Open answers token by token, and the experts of one question, against the slow way."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image

from tests import reference
from vlmoe.adapter import MoELoraConfig
from vlmoe.adapter.layer import adapted_layers
from vlmoe.data.scenes import Scene, Thing, render
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.finite import NotFinite
from vlmoe.models.families.llava import chat
from vlmoe.models.family import Size
from vlmoe.models.load import Base, load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Experts, Predictor, Said
from vlmoe.tasks.readings import SCORINGS, make_predictor

SCENE = render(Scene((Thing("red", "ring", "large", "top left"),), "grey", seed=1))
QUESTION = "What colour is the ring?"


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("tiny")


@pytest.fixture(scope="module")
def adapted() -> tuple[Base, Predictor]:
    """tiny with an adapter of random factors in both towers."""
    base = load_base("tiny")
    torch.manual_seed(0)
    model = get_peft_model(base.model, MoELoraConfig(num_experts=4, top_k=2, r=2))
    for _, layer in adapted_layers(model):
        for parameter in (layer.factor_pair().B, layer.gate()):
            torch.nn.init.normal_(parameter, std=0.2)
    return base, Predictor(model.eval(), Collator.of(base.reader))


def batch(predictor: Predictor, *turns: Turn, room: int = 8) -> dict[str, torch.Tensor]:
    return predictor.collator.talking(SCENE, turns or (Turn(QUESTION),), room)


def stream(predictor: Predictor, *turns: Turn, **settings) -> list[Said]:
    settings = {"max_new_tokens": 8} | settings
    return list(predictor.stream(batch(predictor, *turns), **settings))


@pytest.mark.parametrize("picture", [SCENE, None])
@pytest.mark.parametrize("question", [QUESTION, "Say something long about everything you see."])
def test_the_likeliest_words_are_those_of_the_slow_way(base, picture, question):
    predictor = Predictor(base.model, Collator.of(base.reader))
    asked = Collator.of(base.reader).talking(picture, [Turn(question)], 12)
    said = list(predictor.stream(asked, max_new_tokens=12))
    text = chat(question, picture=picture is not None)
    if picture is not None:
        assert said[-1].text == reference.greedy_text(
            base.model, base.reader.processor, picture, text, 12
        )
    assert [len(one.tokens) for one in said[:-1]] == list(range(1, len(said)))
    assert {one.end for one in said[:-1]} <= {""}
    assert all(later.text.startswith(now.text) for now, later in pairwise(said))
    whole = torch.cat([asked["input_ids"], torch.tensor([said[-1].tokens])], 1)
    with torch.inference_mode():
        logits = base.model(
            **asked | {"input_ids": whole, "attention_mask": None, "position_ids": None}
        ).logits[0]
    start = asked["input_ids"].shape[1] - 1
    assert logits[start:-1].argmax(-1).tolist() == list(said[-1].tokens)


def test_pictures_in_front_of_their_questions(base):
    collator = Collator.of(base.reader)
    turns = [Turn("Which?", "Red."), Turn("Which?")]
    for places, marked in (
        ((1, 1), ["<image>Which?", "<image>Which?"]),
        ((0, 2), ["Which?", "<image><image>Which?"]),
        (None, ["<image><image>Which?", "Which?"]),
    ):
        found = collator.talking([SCENE, SCENE], turns, 8, places)
        shown = [replace(turn, question=text) for turn, text in zip(turns, marked, strict=True)]
        size = Size(SCENE.height, SCENE.width)
        assert found["input_ids"].tolist() == [collator.reader.render(shown, [size, size])]


def test_earlier_turns_are_part_of_the_question(base):
    predictor = Predictor(base.model, Collator.of(base.reader))
    *_, said = stream(predictor, Turn("Where is it?", "At the top left."), Turn(QUESTION))
    text = f"{chat('Where is it?', picture=True)} At the top left.</s>"
    text += chat(QUESTION, picture=False)
    assert said.text == reference.greedy_text(base.model, base.reader.processor, SCENE, text, 8)


def test_it_ends_for_a_reason(base):
    predictor = Predictor(base.model, Collator.of(base.reader))
    assert stream(predictor)[-1].end == "end"
    (short,) = stream(predictor, max_new_tokens=1)
    assert (len(short.tokens), short.end) == (1, "length")
    (hasty,) = stream(predictor, seconds=0)
    assert (len(hasty.tokens), hasty.end) == (1, "time")


def test_temperature(base):
    predictor = Predictor(base.model, Collator.of(base.reader))
    likeliest = stream(predictor)
    assert stream(predictor, temperature=1e-4) == likeliest
    drawn = set()
    for seed in range(8):
        torch.manual_seed(seed)
        drawn.add(stream(predictor, temperature=2.0)[-1].tokens)
        torch.manual_seed(seed)
        assert stream(predictor, temperature=2.0)[-1].tokens in drawn
    assert len(drawn) > 2


def test_letters_of_several_bytes_are_not_shown_in_half(base, monkeypatch):
    predictor = Predictor(base.model, Collator.of(base.reader))
    tokenizer = base.reader.tokenizer
    spelt = tokenizer.encode("\u00e9\u4e2d!", add_special_tokens=False)
    script = iter([*spelt, tokenizer.eos_token_id])
    monkeypatch.setattr(predictor, "_next", lambda *_: (next(script), None))
    texts = [said.text for said in stream(predictor, max_new_tokens=20)]
    assert texts[-1] == "\u00e9\u4e2d!"
    assert not any("\ufffd" in text for text in texts)


def test_nothing_is_held_between_two_tokens(base):
    """A caller may leave, and the model may serve others, in any mode."""
    predictor = Predictor(base.model, Collator.of(base.reader))
    alone = stream(predictor)
    base.model.train()
    one = predictor.stream(batch(predictor), max_new_tokens=8)
    other = predictor.stream(batch(predictor), max_new_tokens=8)
    both = [(a, b) for a, b in zip(one, other, strict=True)]
    assert base.model.training
    base.model.eval()
    assert [a for a, _ in both] == [b for _, b in both] == alone


def test_a_conversation_that_is_too_long(base):
    turns = [Turn("Why? " * 100, "Because. " * 100)] * 4
    with pytest.raises(UserError, match=r"conversation takes \d+ tokens .* at most 1024: begin"):
        Collator.of(base.reader).talking(None, turns, 8)


def routed(adapted, said: bool = True) -> tuple[Experts, dict[str, torch.Tensor], list[int]]:
    _, predictor = adapted
    asked = batch(predictor)
    tokens = list(stream(predictor)[-1].tokens) if said else []
    return predictor.experts(asked, tokens), asked, tokens


@pytest.mark.parametrize("said", [True, False])
def test_gates_are_those_of_the_equation(adapted, said):
    _, predictor = adapted
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, path=path: inputs.__setitem__(path, args[0].flatten(0, -2))
        )
        for path, layer in adapted_layers(predictor.model)
    ]
    found, _, _ = routed(adapted, said)
    for hook in hooks:
        hook.remove()
    layers = dict(adapted_layers(predictor.model))
    assert [layer.path for layer in found.layers] == list(layers)
    for layer, row in zip(found.layers, found.table, strict=True):
        gate = layers[layer.path].gate().detach()
        wanted = torch.stack(
            [reference.reference_gates(x, gate, 2) for x in inputs[layer.path].detach()]
        )
        torch.testing.assert_close(layer.gates_TE, wanted.float(), rtol=1e-5, atol=1e-6)
        assert layer.leading == wanted.argmax(-1).tolist()
        assert row.gate == pytest.approx(wanted.mean(0).tolist(), abs=1e-5)
        assert (row.path, row.tokens) == (layer.path, len(wanted))


def test_tokens_and_patches_lie_where_they_belong(adapted):
    base, _ = adapted
    found, asked, said = routed(adapted)
    whole = [*asked["input_ids"][0].tolist(), *said]
    assert len(found.tokens) == len(whole)
    image_id = base.model.config.image_token_id
    assert [at for at, token in enumerate(whole) if token == image_id] == list(found.picture)
    words = [token for at, token in enumerate(found.tokens) if at not in found.picture]
    text = "".join(words)
    assert "".join(text.split()).startswith("".join(f"USER:{QUESTION}ASSISTANT:".split()))
    language = [layer for layer in found.layers if layer.tower == "language"]
    assert all(len(layer.leading) == len(whole) for layer in language)

    assert found.patches is not None
    assert found.patches[1:3] == (8, 8)
    vision = [layer for layer in found.layers if layer.tower == "vision"]
    for layer in vision:
        assert len(layer.leading) == 65  # CLIP's class token comes first
        assert found.leading(layer) == layer.leading[1:]
    difference = torch.tensor(list(found.patches.seen.tobytes())) - torch.tensor(
        list(SCENE.tobytes())
    )
    assert difference.abs().max() <= 1  # the scene has the tower's own size


def test_without_a_picture_there_are_no_patches(adapted):
    _, predictor = adapted
    found = predictor.experts(predictor.collator.talking(None, [Turn("Why?")], 4))
    assert (found.patches, len(found.picture)) == (None, 0)
    assert {layer.tower for layer in found.layers} == {"language"}


def test_the_picture_is_seen_as_it_was_fitted(base):
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste("blue", (96, 0, 128, 64))
    seen = {
        fit: base.reader.patches(base.reader.pixels([wide], fit)).seen
        for fit in ("crop", "pad")
    }  # fmt: skip
    assert {picture.size for picture in seen.values()} == {(64, 64)}
    assert seen["crop"].getpixel((62, 32)) == (255, 0, 0)  # the blue part is cut off
    assert seen["pad"].getpixel((62, 32))[2] > 200
    assert seen["pad"].getpixel((32, 2)) not in ((255, 0, 0), (0, 0, 255))


def test_pictures_may_be_given_in_any_way(base, tmp_path):
    predictor = Predictor(base.model, Collator.of(base.reader))
    SCENE.save(tmp_path / "scene.png")
    pixels = np.asarray(SCENE)
    given = [
        tmp_path / "scene.png",
        str(tmp_path / "scene.png"),
        Image.open(tmp_path / "scene.png"),
        pixels,
        pixels / 255.0,
        np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        SCENE.convert("RGBA"),
    ]
    options = ["Red.", "Blue."]
    wanted = predictor.choose(SCENE, QUESTION, options)
    assert [predictor.choose(image, QUESTION, options) for image in given] == [wanted] * len(given)
    grey = np.asarray(SCENE.convert("L"))
    assert predictor.choose(grey, QUESTION, options) == predictor.choose(
        grey[..., None], QUESTION, np.array(options)
    )
    assert predictor.choose(None, QUESTION, options) != wanted


@pytest.mark.parametrize(
    ("image", "question", "choices", "why"),
    [
        (None, QUESTION, "Red", r"the choices are 'Red': give a list of texts"),
        (None, QUESTION, None, "the choices are None: give a list"),
        (None, QUESTION, {"Red", "Blue"}, "give a list"),
        (None, QUESTION, {"A": "Red", "B": "Blue"}, "give a list"),
        (None, QUESTION, ["Red", 7], "choice 2 is 7, not a text"),
        (None, QUESTION, [None, "Red"], "choice 1 is None, not a text"),
        (None, None, ["Red", "Blue"], "the question is None, not a text"),
        ("nowhere.png", QUESTION, ["Red", "Blue"], r"nowhere\.png: no such file"),
        (np.full((2, 2, 3), 99.0), QUESTION, ["Red", "Blue"], "does not lie within 0 and 1"),
        (7, QUESTION, ["Red", "Blue"], "a int is no picture: give a path"),
        (Image.new("RGB", (0, 5)), QUESTION, ["Red", "Blue"], "picture without pixels"),
        (None, "Which \ud800?", ["Red", "Blue"], "not valid Unicode"),
        (None, QUESTION, ["Red", "\udfff"], "not valid Unicode"),
    ],
)
def test_what_cannot_be_chosen_from(base, image, question, choices, why):
    with pytest.raises(UserError, match=why):
        Predictor(base.model, Collator.of(base.reader)).choose(image, question, choices)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers(base, number):
    """In every way of reading an answer, a stream's first token included."""
    row = Collator.of(base.reader).letter_ids[0]
    with torch.no_grad():
        kept = base.model.lm_head.weight[row].clone()
        base.model.lm_head.weight[row] = number
    try:
        for scoring in SCORINGS:
            predictor = make_predictor(scoring, base.model, Collator.of(base.reader), 3)
            with pytest.raises(NotFinite, match="the model's logits are not finite"):
                predictor.choose(SCENE, QUESTION, ["Red.", "Blue."])
        for temperature in (0.0, 1.0):
            with pytest.raises(NotFinite, match="the model's logits are not finite"):
                stream(Predictor(base.model, Collator.of(base.reader)), temperature=temperature)
    finally:
        with torch.no_grad():
            base.model.lm_head.weight[row] = kept


@pytest.mark.parametrize("temperature", [1e-300, 5e-324])
def test_the_smallest_temperatures_say_the_likeliest(base, temperature):
    predictor = Predictor(base.model, Collator.of(base.reader))
    assert stream(predictor, temperature=temperature) == stream(predictor)
