"""Conversations in the layouts of other tools, whole; counts add up."""

from __future__ import annotations

import json

import pytest

from tests.parquet_source import shade
from vlmoe.data.dataset import load_split, read_manifest
from vlmoe.data.described import FREE, Described
from vlmoe.data.turn import Turn
from vlmoe.data_prep import jsonl
from vlmoe.data_prep.talks import IN_FRONT, MOVED
from vlmoe.errors import UserError


@pytest.fixture
def raw(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(shade(number))
    return tmp_path


def prepared(raw, items, lines=False, **options):
    file = raw / "a.json"
    text = "\n".join(map(json.dumps, items)) if lines else json.dumps(items)
    file.write_text(text)
    manifest = jsonl.prepare({"train": file}, raw / "out", overwrite=True, **options)
    counts = manifest["records"]
    assert counts["source"] == len(items)
    assert counts["read"] == counts["prepared"] + counts["rejected"] + counts["left_out"]
    return manifest, load_split(raw / "out", "train")


def said(turns):
    return [(turn.question, turn.answer) for turn in turns]


def pixels(example):
    return [picture.getpixel((0, 0)) for picture in example.images]


def llava(*texts, **more):
    who = ("human", "gpt")
    turns = [{"from": who[at % 2], "value": text} for at, text in enumerate(texts)]
    return {"conversations": turns, **more}


def test_llavas_conversations(raw):
    """As in llava_v1_5_mix665k: repeated ids, text alone, marks in front and at the end."""
    manifest, rows = prepared(
        raw,
        [
            llava("<image>\nWhat?", "A cat.", "Sure?", "Yes.", id="1", image="0.png"),
            llava("Which one?\n<image>", "That.", id="1", image="1.png"),
            llava("No picture.", "No.", id="x"),
            llava("<image>\nWhat?", "A cat.", "Sure?", "Yes.", id="1", image="0.png"),
        ],
    )
    assert manifest["task"] == {"kind": FREE}
    assert Described.of(manifest).kind == FREE
    assert manifest["left_out"] == {jsonl.SAME_AGAIN: 1}
    one, two, three = rows
    assert [row.id for row in rows] == ["train/1", "train/1~2", "train/x"]
    assert said(one.turns) == [("<image>What?", "A cat."), ("Sure?", "Yes.")]
    assert (one.question, one.references) == ("Sure?", ("Yes.",))
    assert said(two.turns) == [("<image>Which one?", "That.")]
    assert manifest["notes"][MOVED] == 1
    assert (said(three.turns), three.images) == ([("No picture.", "No.")], ())


def test_sharegpt_with_a_system_turn(raw):
    item = llava("Hi.", "Hello.", image="0.png")
    item["conversations"].insert(0, {"from": "system", "value": "Be kind."})
    manifest, (row,) = prepared(raw, [item], lines=True)
    assert row.turns == (Turn("<image>Hi.", "Hello.", system="Be kind."),)
    assert manifest["notes"][IN_FRONT] == 1


def test_openais_messages_with_typed_parts(raw):
    item = {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Short."}]},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Left is"},
                    {"type": "image_url", "image_url": {"url": "0.png"}},
                    {"type": "text", "text": "right is"},
                    {"type": "image", "image": "1.png"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Seen."}]},
            {"role": "user", "content": "Which is darker?"},
        ]
    }
    _, (row,) = prepared(raw, [item])
    assert row.turns[0].system == "Short."
    assert row.turns[0].question == "Left is<image>\nright is<image>"
    assert row.turns[1] == Turn("Which is darker?")
    assert not row.labelled
    assert len(set(pixels(row))) == 2


def test_llamafactorys_lists_of_images(raw):
    item = {
        "messages": [
            {"role": "user", "content": "<image><image>Which is darker?"},
            {"role": "assistant", "content": "The first."},
        ],
        "images": ["2.png", "0.png"],
        "system": "Look.",
    }
    _, (row,) = prepared(raw, [item])
    assert said(row.turns) == [("<image><image>Which is darker?", "The first.")]
    assert row.turns[0].system == "Look."
    _, (swapped,) = prepared(raw, [{**item, "images": ["0.png", "2.png"]}])
    assert pixels(row) == pixels(swapped)[::-1]


def test_plain_questions_and_alpaca(raw):
    _, rows = prepared(
        raw,
        [
            {"image": "0.png", "question": "What?", "answer": "A cat."},
            {"image": "0.png", "question": "Who?", "answer": ["two", "2", "2", "3"]},
            {"question": "How many?", "answer": 3},
            {"question": "How many?", "answer": 2.0, "id": "f"},
            {"instruction": "Name it.", "input": "", "output": "Ok.", "images": ["1.png"]},
            {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        ],
        lines=True,
    )
    assert [said(row.turns)[0] for row in rows] == [
        ("<image>What?", "A cat."), ("<image>Who?", "2"), ("How many?", "3"), ("How many?", "2"),
        ("<image>Name it.", "Ok."), ("Add.\n1 and 2", "3"),
    ]  # fmt: skip
    assert rows[1].references == ("two", "2", "2", "3")


def test_questions_with_options_stand_among_them(raw):
    items = [
        {"question": "Which?", "choices": ["a", "b"], "answer": "B"},
        llava("A talk.", "Yes."),
        llava("Which?\nA. red\nB. blue", "B"),
    ]
    manifest, rows = prepared(raw, items, form="free-form")
    assert [row.is_free for row in rows] == [False, True, True]
    manifest, rows = prepared(raw, items)  # auto: some have options
    assert [row.is_free for row in rows] == [False, False]
    assert manifest["left_out"] == {jsonl.WITHOUT_OPTIONS: 1}
    assert "task" not in manifest
    assert manifest["format"] == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (llava("<image>\nWhat?", "It."), "<image> in the text, but no picture"),
        (
            llava("<image><image> What?", "It.", image="0.png"),
            "2 times in the text, and there",
        ),
        (llava("<image> What?", "It.", image=["0.png", "1.png"]), "1 times in the text, and there"),
        (llava("What?", "It.", image=["0.png", ""]), "a list of pictures in which one is empty"),
        (llava("What?", "It.", image="gone.png"), "no such file"),
        (llava("What?", "It.", video="a.mp4"), "only pictures can be shown"),
        (llava("<video>\nWhat?", "It."), "only pictures can be shown"),
        (llava("What?", "", "So?", "It."), "empty answer inside of a conversation"),
        (llava("What?", "It.", "Go.", "<image>"), "reserved text '<image>'"),
        ({"conversations": [{"from": "gpt", "value": "Hi."}]}, "does not go from human to gpt"),
        ({"conversations": []}, "a conversation without turns"),
        ({"question": "What?", "answer": [["a"], "b"]}, None),
        ({"question": "What?", "answer": ["a", ""]}, "a list of answers in which one is empty"),
        ({"question": "What?", "answer": True}, "answer is neither a text nor a number"),
        ({"question": "What?", "answer": float("inf")}, "no number that could be said"),
        ({"question": "What?", "anwser": "It."}, "do you mean 'answer'"),
        (llava("What?", "It.", system={"a": 1}), "system is not text"),
        (
            {"instruction": "Go on.", "output": "Ok.", "history": [["a", "b"]]},
            "give it as messages",
        ),
        ({"question": "What?", "answer": "It.", "photo_file": "0.png"}, "but no 'image'"),
    ],
)
def test_what_is_not_understood_is_said(raw, item, reason):
    if reason is None:  # an answer in a list of its own is that answer
        assert prepared(raw, [item])[1][0].references == ("a", "b")
        return
    manifest, rows = prepared(raw, [item, llava("Yes?", "Yes.")], max_rejected=0.5)
    (found,) = manifest["rejected"]["by_reason"]
    assert reason in found
    assert len(rows) == 1


def test_an_unknown_form(raw):
    with pytest.raises(UserError, match="unknown form 'free'"):
        prepared(raw, [llava("Yes?", "Yes.")], form="free")


def test_two_systems_that_differ(raw):
    item = llava("Hi.", "Hello.", system="A.")
    item["conversations"].insert(0, {"from": "system", "value": "B."})
    manifest, _ = prepared(raw, [item, llava("Yes?", "Yes.")], max_rejected=0.5)
    assert "say different things" in next(iter(manifest["rejected"]["by_reason"]))


def test_the_command(raw, capsys):
    (raw / "a.json").write_text(json.dumps([llava("Yes?", "Yes.")] * 2))
    jsonl.main(["--split", f"train={raw}/a.json", "--out", str(raw / "out"), "--as", "free-form"])
    assert read_manifest(raw / "out")["format"] == 2
    assert "2 rows of the source made 2 records" in capsys.readouterr().out
