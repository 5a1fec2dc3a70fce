"""The official files of six sets of visual questions, in small."""

from __future__ import annotations

import json

import pytest

from tests.parquet_source import shade
from vlmoe.data.dataset import load_split
from vlmoe.data.described import FREE, Described
from vlmoe.data_prep import json_stream, vqa
from vlmoe.data_prep.vqa_sets import SETS
from vlmoe.errors import UserError

LINE = vqa.INSTRUCTION


def put(folder, files, pictures):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    for number, name in enumerate(pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(shade(number))


def coco(prefix, split, count, answered=True):
    questions = [
        {"image_id": 9 + n, "question": f"What {n}?", "question_id": 900 + n} for n in range(count)
    ]
    said = [{"answer": "net" if at < 6 else "nets", "answer_id": at} for at in range(10)]
    notes = [
        {"question_id": one["question_id"], "image_id": one["image_id"], "answers": said,
         "answer_type": "other", "multiple_choice_answer": "net"}
        for one in questions
    ]  # fmt: skip
    start = "v2_" if prefix else ""
    files = {
        f"{start}OpenEnded_mscoco_{split}_questions.json": {"info": {}, "questions": questions}
    }
    if answered:
        files[f"{start}mscoco_{split}_annotations.json"] = {"license": {}, "annotations": notes}
    return files, [f"{split}/COCO_{split}_{9 + n:012d}.jpg" for n in range(count)]


def vqav2(folder):
    for split, count, answered in (("train2014", 3, True), ("val2014", 2, True),
                                   ("test2015", 1, False)):  # fmt: skip
        put(folder, *coco("v2", split, count, answered))
    return {"train": 3, "validation": 2, "unlabelled": 1}


def okvqa(folder):
    put(folder, *coco("", "train2014", 2))
    return {"train": 2}


def textvqa(folder):
    def rows(count, answered=True):
        data = [
            {"question_id": n, "image_id": f"a{n}", "question": f"What {n}?",
             **({"answers": ["net"] * 6 + ["nets"] * 4} if answered else {})}
            for n in range(count)
        ]  # fmt: skip
        return {"dataset_type": "x", "data": data}

    put(
        folder,
        {"TextVQA_0.5.1_train.json": rows(2), "TextVQA_0.5.1_test.json": rows(1, False)},
        ["train_images/a0.jpg", "train_images/a1.jpg"],
    )
    return {"train": 2, "unlabelled": 1}


def gqa(folder):
    def rows(count):
        return {
            f"0{n}": {"question": f"What {n}?", "imageId": f"{n}", "answer": "net",
                      "types": {"structural": "query"}, "fullAnswer": "It is a net."}
            for n in range(count)
        }  # fmt: skip

    put(
        folder,
        {"train_balanced_questions.json": rows(2), "testdev_balanced_questions.json": rows(1)},
        ["images/0.jpg", "images/1.jpg"],
    )
    return {"train": 2, "test": 1}


def docvqa(folder):
    data = [{"questionId": 1, "question": "What 0?", "image": "documents/x_1.png",
             "answers": ["net", "Net"], "question_types": ["form"]}]  # fmt: skip
    put(folder, {"val_v1.0_withQT.json": {"data": data}}, ["spdocvqa_images/x_1.png"])
    return {"validation": 1}


def chartqa(folder):
    def rows(kind):
        return [{"imgname": f"{kind}.png", "query": "What 0?", "label": "net"}]

    put(
        folder,
        {f"train/train_{kind}.json": rows(kind) for kind in ("human", "augmented")},
        ["train/png/human.png", "train/png/augmented.png"],
    )
    return {"train": 2}


@pytest.mark.parametrize("make", [vqav2, okvqa, textvqa, gqa, docvqa, chartqa])
def test_a_set(make, tmp_path):
    wanted = make(tmp_path / "raw")
    name = make.__name__
    manifest = vqa.prepare(name, tmp_path / "raw", tmp_path / "out")
    assert {split: each["questions"] for split, each in manifest["splits"].items()} == wanted
    assert manifest["rejected"]["total"] == 0
    described = Described.of(manifest)
    assert (described.kind, described.metrics) == (FREE, SETS[name].metric)
    first = next(iter(wanted))
    one = load_split(tmp_path / "out", first)[0]
    assert one.turns[0].question == f"<image>What 0?\n{LINE}"
    assert one.turns[0].answer == "net"
    assert one.references[0] == "net"
    assert len(one.images) == 1
    if "unlabelled" in wanted:
        open_one = load_split(tmp_path / "out", "unlabelled")[0]
        assert not open_one.labelled
        assert open_one.turns[0].answer == ""


def test_ten_answers_are_kept_and_categories(tmp_path):
    vqav2(tmp_path / "raw")
    vqa.prepare("vqav2", tmp_path / "raw", tmp_path / "out", instruction="", val_as="test")
    one = load_split(tmp_path / "out", "test")[0]
    assert one.references == ("net",) * 6 + ("nets",) * 4
    assert one.category == "other"
    assert one.turns[0].question == "<image>What 0?"


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="has none of the files of GQA: train_balanced"):
        vqa.prepare("gqa", tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="unknown set 'gqq'"):
        vqa.prepare("gqq", tmp_path, tmp_path / "out")
    vqav2(tmp_path / "raw")
    (tmp_path / "raw" / "v2_mscoco_train2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"has no v2_mscoco_train2014_annotations\.json"):
        vqa.prepare("vqav2", tmp_path / "raw", tmp_path / "out")
    chartqa(tmp_path / "charts")
    (tmp_path / "charts" / "train" / "train_augmented.json").unlink()
    with pytest.raises(UserError, match="the other half of the split"):
        vqa.prepare("chartqa", tmp_path / "charts", tmp_path / "out")


def test_rows_that_are_none_are_counted(tmp_path):
    files, pictures = coco("v2", "train2014", 4)
    questions = files["v2_OpenEnded_mscoco_train2014_questions.json"]["questions"]
    del questions[0]["question"]
    questions[1]["question_id"] = 5  # nobody answered it
    questions[2]["image_id"] = 77  # no such picture
    put(tmp_path / "raw", files, pictures)
    manifest = vqa.prepare("vqav2", tmp_path / "raw", tmp_path / "out", max_rejected=1)
    assert manifest["records"] == {"source": 4, "read": 4, "prepared": 1, "rejected": 3,
                                   "left_out": 0}  # fmt: skip
    assert set(manifest["rejected"]["by_reason"]) == {
        "no 'question'", "a question that the file of answers does not have", "no such file"
    }  # fmt: skip


def test_a_picture_is_a_plain_name(tmp_path):
    (tmp_path / "raw").mkdir()
    secret = {"0": {"question": "What?", "imageId": "../secret", "answer": "x"}}
    (tmp_path / "secret.jpg").write_bytes(shade(1))
    put(tmp_path / "raw", {"train_balanced_questions.json": secret}, [])
    with pytest.raises(UserError, match="picture's name is not a plain file name"):
        vqa.prepare("gqa", tmp_path / "raw", tmp_path / "out")


def test_entries_are_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 7)
    rows = [{"a": n, "text": '[}]"{' * n} for n in range(20)]
    (tmp_path / "a.json").write_text(json.dumps({"x": [1, {"rows": 2}], "rows": rows, "y": 12345}))
    assert list(json_stream.entries_under(tmp_path / "a.json", "rows")) == rows
    assert dict(json_stream.entries_of(tmp_path / "a.json"))["y"] == 12345
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    assert list(json_stream.listed(tmp_path / "b.json")) == rows
    (tmp_path / "c.json").write_text("[]")
    assert list(json_stream.listed(tmp_path / "c.json")) == []
    with pytest.raises(UserError, match="has no list 'other'"):
        list(json_stream.entries_under(tmp_path / "a.json", "other"))
    for text in (
        '{"rows": [1, 2',
        '{"rows": 3}',
        "[1]",
        "{1: 2}",
        '{"rows": [1 2',
        '{"rows": [1 2]}',
        '{"a": 1 "rows": [1]}',
        "",
    ):
        (tmp_path / "d.json").write_text(text)
        with pytest.raises(UserError, match=r"d.json (is not the JSON|has no list)"):
            list(json_stream.entries_under(tmp_path / "d.json", "rows"))


def test_the_command(tmp_path, capsys):
    gqa(tmp_path / "raw")
    vqa.main(["--set", "gqa", "--source", str(tmp_path / "raw"), "--out", str(tmp_path / "out")])
    assert "3 rows of the source made 3 records" in capsys.readouterr().out
