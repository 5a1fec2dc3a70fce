"""The engine: each adapter answers as it does alone, and bad input harms nothing."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from tests.adapter.test_adapter_layer import fill
from vlmoe.adapter import MoELoraConfig, load_adapter
from vlmoe.data.scenes import Scene, Thing, render
from vlmoe.data.turn import Turn
from vlmoe.demo import experts as shown
from vlmoe.demo.engine import Engine
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError
from vlmoe.models.load import load_base
from vlmoe.tasks.collator import Collator
from vlmoe.tasks.predict import Predictor

SCENE = render(Scene((Thing("red", "ring", "large", "top left"),), "grey", seed=1))
QUESTION = "What colour is the ring?"
OPTIONS = ["Blue.", "Red.", "Green."]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(["a.1", "b"]):
        torch.manual_seed(seed)
        config = MoELoraConfig(num_experts=3 + seed, top_k=2, r=2)
        model = get_peft_model(load_base("tiny").model, config)
        fill(model, seed=seed)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ("a.1", "b")}


@pytest.fixture(scope="module")
def engine(adapters) -> Engine:
    engine = Engine("tiny", adapters, device=torch.device("cpu"), limits=Limits(new_tokens=50))
    with pytest.raises(UserError, match=r"Loading: waiting .* Try again"):
        engine.choose(SCENE, QUESTION, OPTIONS, "b")
    engine.load()
    return engine


def alone(adapters, name: str) -> Predictor:
    """The same model in the way everybody else loads it."""
    base = load_base("tiny")
    model = base.model if name == "base" else load_adapter(base.model, adapters[name])
    return Predictor(model, Collator.of(base.reader))


def said(engine: Engine, name: str, count: int = 8) -> list[str]:
    return [now.text for now, _ in engine.ask(SCENE, [Turn(QUESTION)], name, max_new_tokens=count)]


def test_the_loading_is_told(adapters, monkeypatch):
    engine = Engine("tiny", adapters, device=torch.device("cpu"), limits=Limits())
    told = []

    def slowly(load):
        return lambda *args, **more: told.append(engine.status) or load(*args, **more)

    monkeypatch.setattr("vlmoe.demo.engine.load_base", slowly(load_base))
    monkeypatch.setattr("vlmoe.adapter.switch.load_adapter", slowly(load_adapter))
    engine.load()
    assert [line.rpartition(" (")[0] for line in told] == [
        "Loading: the base tiny",
        "Loading: adapter 1 of 2, a.1",
        "Loading: adapter 2 of 2, b",
    ]
    assert engine.ready


def test_answers_are_those_of_each_adapter_alone(engine, adapters):
    assert engine.names == ["a.1", "b", "base"]
    assert engine.status == "Ready: tiny on CPU, float32"
    wanted = {}
    bare = alone(adapters, "base").choose(SCENE, QUESTION, OPTIONS)
    for name in engine.names:
        predictor = alone(adapters, name)
        asked = predictor.collator.talking(SCENE, [Turn(QUESTION)], 8)
        wanted[name] = [now.text for now in predictor.stream(asked, max_new_tokens=8)]
        chosen = predictor.choose(SCENE, QUESTION, OPTIONS)
        choice = engine.choose(SCENE, QUESTION, OPTIONS, name)
        assert list(choice.predictions) == ([name, "base"] if name != "base" else ["base"])
        assert choice.predictions[name].probabilities == pytest.approx(chosen.probabilities)
        assert choice.predictions[name].choice == chosen.choice
        assert choice.predictions["base"].probabilities == pytest.approx(bare.probabilities)
        assert choice.record()["answers"][name]["letter"] == chosen.letter
    assert len({tuple(texts) for texts in wanted.values()}) == 3
    for name in ("b", "base", "a.1", "base", "b"):
        assert said(engine, name) == wanted[name]


def test_two_answers_at_once_do_not_mix(engine):
    apart = [said(engine, name) for name in engine.names]
    streams = [engine.ask(SCENE, [Turn(QUESTION)], name, max_new_tokens=8) for name in engine.names]
    together: list[list[str]] = [[] for _ in streams]
    for _ in range(8):
        for texts, stream in zip(together, streams, strict=True):
            if (step := next(stream, None)) is not None:
                texts.append(step[0].text)
    assert together == apart


def test_who_leaves_holds_nothing_up(engine):
    stream = engine.ask(SCENE, [Turn(QUESTION)], "b", max_new_tokens=50, temperature=2)
    next(stream)
    stream.close()
    assert said(engine, "a.1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"turns": [Turn(" ")]}, "empty"),
        ({"turns": [Turn("x" * 3000, "no"), Turn(QUESTION)]}, "3,000 characters"),
        ({"name": "c"}, "no adapter 'c': choose from a.1, b, base"),
        ({"temperature": 2.1}, "between 0 and 2"),
        ({"temperature": float("nan")}, "between 0 and 2"),
        ({"max_new_tokens": 51}, "between 1 and 50"),
        ({"max_new_tokens": 0}, "between 1 and 50"),
    ],
)
def test_what_is_refused(engine, change, words):
    given = {"picture": SCENE, "turns": [Turn(QUESTION)], "name": "b"} | change
    with pytest.raises(UserError, match=words):
        next(engine.ask(**given))
    assert said(engine, "b")


def test_choosing_refuses_too(engine):
    for question, options in (("", OPTIONS), (QUESTION, ["Red."]), (QUESTION, ["a", "A"])):
        with pytest.raises(UserError):
            engine.choose(SCENE, question, options, "b")
    assert engine.choose(None, QUESTION, OPTIONS, "b").options == tuple(OPTIONS)


def test_the_time_limit(adapters):
    engine = Engine("tiny", {}, device=torch.device("cpu"), limits=Limits(seconds=1e-9))
    engine.load()
    assert engine.names == ["base"]
    steps = list(engine.ask(SCENE, [Turn(QUESTION)], "base"))
    assert [now.end for now, _ in steps] == ["time"]


def test_experts_of_the_last_question(engine, adapters):
    *_, (_, asked) = engine.ask(SCENE, [Turn(QUESTION)], "b", max_new_tokens=8)
    for name, experts in (("b", 4), ("a.1", 3)):
        found = engine.experts(asked, name)
        assert {len(row.share) for row in found.table} == {experts}
        assert len(found.tokens) == asked.batch["input_ids"].shape[1] + len(asked.said)
    with pytest.raises(UserError, match="bare base has no experts"):
        engine.experts(asked, "base")
    with pytest.raises(UserError, match="Ask or choose something first"):
        engine.experts(None, "b")
    choice = engine.choose(Image.new("RGB", (9, 30)), QUESTION, OPTIONS, "b")
    assert engine.experts(choice.asked, "b").patches[1:3] == (8, 8)


def test_what_can_be_taken_home(engine):
    *_, (_, asked) = engine.ask(SCENE, [Turn(QUESTION)], "b", max_new_tokens=8)
    found = engine.experts(asked, "b")
    record = shown.record(found, "b", "tiny")
    layers = record["layers"]
    assert isinstance(layers, list)
    assert [layer["path"] for layer in layers] == [layer.path for layer in found.layers]
    for layer, seen in zip(layers, found.layers, strict=True):
        chosen = (seen.gates_TE > 0).sum(0)
        assert layer["share"] == pytest.approx((chosen / chosen.sum()).tolist())
        assert layer["leading"] == seen.gates_TE.argmax(-1).tolist()
    language = shown.layer_names(found, "language")
    assert next(iter(language)) == "layer 0: q_proj"
    first, *_, last = language.values()
    assert shown.tokens(found, first) != shown.tokens(found, last)
    vision = shown.layer_names(found, "vision")
    assert "expert" in shown.patches(found, next(iter(vision.values())))
    assert "no layers in the vision tower" in shown.patches(found, None)
    drawn = shown.draw_maps(found)
    assert shown.maps(found, drawn).count("<img ") == 2
    assert shown.downloads(found, drawn, "b", "tiny").count(" download=") == 3
    *_, (_, asked) = engine.ask(None, [Turn(QUESTION)], "b", max_new_tokens=8)
    assert "no picture" in shown.patches(engine.experts(asked, "b"), None)


def test_several_pictures_in_their_order(engine):
    """In front of the first question, each at its own place; the map is the first one's."""
    other = render(Scene((Thing("blue", "star", "huge", "top left"),), "teal", seed=2))
    batches = []
    for pictures in ([SCENE, other], [other, SCENE]):
        *_, (_, asked) = engine.ask(pictures, [Turn(QUESTION)], "b", max_new_tokens=4)
        batches.append(asked.batch)
        found = engine.experts(asked, "b")
        tokens = len(engine._predictor("b").collator.reader.picture_tokens(None))
        assert len(found.picture) >= 2 * tokens  # and what stands between them
        assert len(found.leading(found.layers[0])) == tokens
    one, two = batches
    assert torch.equal(one["input_ids"], two["input_ids"])
    assert torch.equal(one["pixel_values"], two["pixel_values"].flip(0))
    *_, (_, asked) = engine.ask([], [Turn(QUESTION)], "b", max_new_tokens=4)
    assert "pixel_values" not in asked.batch
