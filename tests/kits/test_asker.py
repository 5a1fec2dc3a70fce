"""Questions in a kit's words are answered as ``vlmoe evaluate`` answers them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.demo.conftest import runs, shapes_directory  # noqa: F401
from vlmoe.adapter import load_adapter
from vlmoe.data.dataset import load_split
from vlmoe.data.turn import Turn
from vlmoe.errors import UserError
from vlmoe.kits.asker import Asker, Request
from vlmoe.kits.documents import answer, asked, completed, letters, pictures, place
from vlmoe.kits.settings import Wanted, cut, device_of, one_of, wanted, whole
from vlmoe.models.load import load_base
from vlmoe.tasks.readings import make_predictor
from vlmoe.train.record.finished import collator_of, settings_of


@pytest.fixture(scope="session")
def adapter(runs: Path) -> Path:  # noqa: F811
    return runs / "shapes.first"


@pytest.fixture(scope="session")
def asker(adapter: Path) -> Asker:
    return Asker(str(adapter), device="cpu", batch_size=4)


def requests_of(examples, style):
    return [
        Request(style.ask(one.question, one.choices), lambda one=one: [one.image])
        for one in examples
    ]


def test_what_is_said_is_what_evaluate_says(asker, adapter, shapes_directory):  # noqa: F811
    examples = [*load_split(shapes_directory, "test")]
    base = load_base("tiny")
    collator = collator_of(base.reader, settings_of(adapter / "adapter"))
    predictor = make_predictor("generate", load_adapter(base.model, adapter), collator, 8)
    expected = [one.text for one in predictor.choose_all(examples)]
    assert asker.say(requests_of(examples, asker.style), 8) == expected
    marked = [
        Request(f"<image>{one.text}", one.pictures) for one in requests_of(examples, asker.style)
    ]
    assert asker.say(marked, 8) == expected


def test_likelihoods_are_those_of_the_tokens(asker, shapes_directory):  # noqa: F811
    example = load_split(shapes_directory, "test")[0]
    (request,) = requests_of([example], asker.style)
    both = [Request(request.text, request.pictures, letter) for letter in "AB"]
    found = asker.likelihoods(both)
    one = example.__class__("x", example.image, example.question, example.choices, 0)
    predictor = make_predictor("letter", asker.model, asker.collator)
    batch = predictor._moved(predictor.collate([one]))
    from vlmoe.models.forward import logits_at

    with torch.inference_mode():
        logs = logits_at(asker.model, batch)[0].double().log_softmax(-1)
    ids = asker.collator.letter_ids
    for (value, greedy), id in zip(found, ids, strict=False):
        assert value == pytest.approx(float(logs[id]), abs=1e-4)
        assert greedy == (int(logs.argmax()) == id)


def test_a_likelihood_is_without_the_end(asker):
    """Of an answer that the model would not end there."""
    collator, text, answer = asker.collator, "What is two and two?", "A large red"
    prompt = collator.reader.render([Turn(text)])
    whole = collator.reader.render([Turn(text)], answer=answer)
    said = whole[len(prompt) : -1]
    with torch.inference_mode():
        logits = asker.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    logs = logits[torch.arange(len(prompt) - 1, len(whole) - 1), whole[len(prompt) :]]
    assert whole[-1] in collator.reader.ends
    assert logs[-1] < -0.1  # the end would be seen in the sum
    ((value, greedy),) = asker.likelihoods([Request(text, answer=answer)])
    assert value == pytest.approx(float(logs[: len(said)].sum()), abs=1e-4)
    assert not greedy


def test_text_alone_and_two_pictures(asker):
    red, blue = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    said = asker.say(
        [
            Request("What is two and two?"),
            Request("<image> or <image>: which is red?", lambda: [red, blue]),
            Request("Which is red?", lambda: [red, blue]),
        ],
        4,
    )
    assert len(said) == 3
    assert all(isinstance(text, str) for text in said)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request("<image> What?"), "1 places for 0 pictures"),
        (Request("  "), "empty question"),
        (Request("What?</s>"), "reserved text"),
        (Request("What?", lambda: ["/nowhere.png"]), "nowhere"),
        (Request("word " * 5000), "tokens"),
    ],
    ids=["places", "empty", "markup", "picture", "long"],
)
def test_what_cannot_be_asked_is_told_and_the_others_are_answered(asker, request_, told):
    good = Request("What is two and two?")
    with pytest.warns(UserWarning, match=rf"1 of 2 questions could not be asked.*{told}"):
        said = asker.say([request_, good], 4)
    assert said[0] == ""
    assert said[1] == asker.say([good], 4)[0]


def test_a_likelihood_of_what_cannot_be_asked(asker):
    with pytest.warns(UserWarning, match="could not be asked"):
        assert asker.likelihoods([Request("", answer="A")]) == [(float("-inf"), False)]


def test_an_answer_longer_than_the_model_takes(asker):
    with pytest.warns(UserWarning, match="answers end at"):
        asker.say([Request("What is two and two?")], 100_000)


def test_a_batch_of_none():
    with pytest.raises(UserError, match="batch_size"):
        Asker("none", "tiny", batch_size=0)


def test_settings():
    assert wanted({}, 7) == Wanted(7, ())
    plain = {"max_new_tokens": 3, "until": ["\n", ""], "temperature": 0, "do_sample": False,
             "num_beams": 1, "top_p": None}  # fmt: skip
    assert wanted(plain, 7) == Wanted(3, ("\n",))
    assert wanted({"max_gen_toks": 5, "until": "x"}, 7) == Wanted(5, ("x",))
    with pytest.warns(UserWarning, match="temperature=0.7 has no effect: the likeliest"):
        wanted({"temperature": 0.7}, 7)
    with pytest.warns(UserWarning, match="odd=1 has no effect: not known"):
        wanted({"odd": 1}, 7)
    for wrong in (0, -1, True, "9", 1.5):
        with pytest.raises(UserError, match="tokens"):
            wanted({"max_new_tokens": wrong}, 7)
    with pytest.raises(UserError, match="until"):
        wanted({"until": [1]}, 7)
    assert cut("a b. c", ["x", ".", " b"]) == "a"
    assert cut("abc", []) == "abc"
    with pytest.raises(UserError, match="unknown argument devcie"):
        one_of(["devcie"], ["device"])


def test_parts_of_a_row():
    picture = Image.new("L", (4, 4))
    row = {"id": "1", "image": picture, "question": "Which?", "choices": ["Red.", "Blue."],
           "answer": 1}  # fmt: skip
    assert asked(row).startswith("Which?\nA. Red.\nB. Blue.\n")
    assert completed(row) == f"{asked(row)}\nAnswer:"
    assert (answer(row), list(letters(row)), place(row)) == ("B", ["A", "B"], 1)
    assert [one.mode for one in pictures(row)] == ["RGB"]
    free = {"id": "2", "image": None, "more": [], "references": ["four", "4"],
            "turns": [{"question": "Two and two?", "answer": "four"}]}  # fmt: skip
    assert (asked(free), answer(free), pictures(free)) == ("Two and two?", "four", [])
    with pytest.raises(ValueError, match="several turns"):
        asked({**free, "turns": free["turns"] * 2})


@pytest.mark.parametrize("given", [0, -3, "auto", "", "1.5", True, None])
def test_counts_that_are_none(given):
    with pytest.raises(UserError, match=r"batch_size=.*a whole number from 1"):
        whole(given, "batch_size")


def test_counts_and_devices(monkeypatch):
    assert whole("8", "batch_size") == whole(8, "batch_size") == 8
    assert [device_of(one) for one in (None, "cuda", "cpu", "cuda:3")] == [
        "auto", "auto", "cpu", "cuda:3",
    ]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("cuda:0") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("cuda:0") == "cuda:0"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of("cuda:0") == device_of("cuda") == "cuda:1"
    assert device_of("cuda:3") == "cuda:3"
