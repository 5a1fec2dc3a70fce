"""A user's own questions, as JSON lines and as conversations; and the example in the docs."""

from __future__ import annotations

import base64
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.parquet_source import shade, torn
from tests.tree import tree
from vlmoe.data.dataset import load_split
from vlmoe.data.record import Rejected
from vlmoe.data_prep import check, jsonl
from vlmoe.data_prep.cells import Pictures
from vlmoe.data_prep.items import Item, Items
from vlmoe.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def write_lines(file: Path, items: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return file


def item(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "image": f"photos/{number // 2}.png",
        "question": f"What is number {number}?",
        "choices": ["A cat.", "A dog.", "A cow."],
        "answer": "ABC"[number % 3],
    }
    return row | changes


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw" / "photos").mkdir(parents=True)
    for number in range(20):
        (tmp_path / "raw" / f"photos/{number}.png").write_bytes(shade(number))
    return tmp_path / "raw"


def questions(folder: Path) -> dict[str, list[str]]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {split: load_split(folder, split).ids for split in manifest["splits"]}


def test_lines(tmp_path: Path, raw: Path) -> None:
    items = [
        item(0, id="first", category="animals", answer=2),
        item(1, answer="a dog"),
        item(2, image=None),
        {"question": "Is it?", "choices": ["Yes.", "No."]},
        item(4, image=str(raw / "photos/3.png")),
    ]
    file = write_lines(raw / "mine.jsonl", items)
    file.write_text("\ufeff" + file.read_text().replace("\n", "\r\n\n"), encoding="utf-8")
    jsonl.prepare({"train": file}, tmp_path / "out", max_rejected=0)
    train = load_split(tmp_path / "out", "train")
    assert train.ids == ["train/first", *(f"train/line {n}" for n in (3, 5, 7, 9))]
    assert [example.answer for example in train] == [2, 1, 2, -1, 1]
    assert [example.image is None for example in train] == [False, False, True, True, False]
    assert train[0].category == "animals"
    assert train[4].image is not None
    assert train[4].image.getpixel((0, 0)) == (3, 0, 77)


def test_no_picture_is_in_two_splits(tmp_path: Path, raw: Path) -> None:
    """Also where one picture lies there under two names."""
    for number in range(10):
        (raw / f"photos/{number + 10}.png").write_bytes(shade(number))
    file = write_lines(raw / "mine.jsonl", [item(n) for n in range(40)])
    manifest = jsonl.prepare(file, tmp_path / "out")
    assert {s: c["questions"] for s, c in manifest["splits"].items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert manifest["notes"]["pictures in more than one split"] == 0
    assert len(list((tmp_path / "out/images").iterdir())) == 10
    again = jsonl.prepare(file, tmp_path / "out", overwrite=True, workers=1)
    other = jsonl.prepare(file, tmp_path / "other", seed=1)
    assert (manifest, questions(tmp_path / "out")) == (again, questions(tmp_path / "out"))
    assert questions(tmp_path / "other") != questions(tmp_path / "out")
    assert other["seed"] == 1
    jsonl.prepare(file, tmp_path / "half", shares=(0.5, 0.0, 0.5))
    assert {s: len(ids) for s, ids in questions(tmp_path / "half").items()} == {
        "train": 20,
        "test": 20,
    }


def test_conversations(tmp_path: Path, raw: Path) -> None:
    asked = "What is it?\nA. A cat.\nB. A dog.\nAnswer with the option's letter."
    items = [
        {
            "id": 7,
            "image": "photos/1.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{asked}"},
                {"from": "gpt", "value": "B"},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "It barks."},
                {"from": "human", "value": "Which one?\n(A) This\n(B) That"},
                {"from": "gpt", "value": "(A) This"},
            ],
        },
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "A cat."}]},
    ]
    file = raw / "talk.json"
    file.write_text(json.dumps(items, indent=1))
    manifest = jsonl.prepare({"test": file}, tmp_path / "out")
    test = load_split(tmp_path / "out", "test")
    assert test.ids == ["test/7", "test/7#2", "test/item 1"]
    assert [example.answer for example in test] == [1, 0, 0]
    assert [example.image is None for example in test] == [False, False, True]
    assert test[1].choices == ("This", "That")
    assert manifest["left_out"] == {jsonl.WITHOUT_OPTIONS: 1}


SAID_B = {"from": "gpt", "value": "B"}
PICTURELESS = {"question": "Which?", "choices": ["x", "y"], "answer": "A"}
BAD_ITEMS: list[tuple[Any, str]] = [
    ("{", "not valid JSON"),
    ("3", "not a JSON object"),
    ("[1]", "not a JSON object"),
    (item(0, question=None), "no question"),
    (item(0, question=""), "no question"),
    (item(0, question=3), "question is not text"),
    (item(0, choices="A, B"), "choices is not a list of texts"),
    (item(0, choices=["a", 3]), "choices is not a list of texts"),
    (item(0, choices=["a", "A"], answer=0), "fewer than two distinct options"),
    (item(0, answer="E"), "answer is none of the options"),
    (item(0, answer=1, choices=["1", "2", "3"]), "answer can be read as index or as text"),
    (item(0, image="photos/none.png"), "no such file"),
    (item(0, image="photos"), "a folder, not a picture"),
    (item(0, image=3), "image is not a path"),
    (item(0, image=["photos/1.png", "photos/2.png"]), "several pictures in one question"),
    (item(0, category=3), "category is not text"),
    (item(0, id="line 1 of another"), ""),
    ({"conversations": [{"from": "human", "value": "<image>\nA. x\nB. y"}]}, "<image> in the text"),
    ({"conversations": "no"}, "conversations is not a list"),
    (item(0, choices=["<image 1>", "<image 2>"], answer="A"), "an option is a picture"),
    (json.dumps(item(0)) * 2, "not valid JSON"),
    (
        {"conversations": [{"from": "human", "value": "Which?\n1. x\n2. y"}, SAID_B]},
        "the reply is a letter, but its turn has no options",
    ),
    ({"question": "Which?", "choices": ["x", "y"], "ans": "B"}, "no 'answer', but key 'ans'"),
    ({"question": "Which?", "choices": ["x", "y"], "gold_one": "y"}, "unknown key 'gold_one'"),
    (PICTURELESS | {"file": "photos/1.png"}, "key 'file' seems to hold the picture"),
    (PICTURELESS | {"media": ["photos/1.JPG"]}, "key 'media' seems to hold the picture"),
    (PICTURELESS | {"visual": {"path": "1.webp"}}, "key 'visual' seems to hold the picture"),
    (PICTURELESS | {"x": "/9j/4AAQSkZJRgABAQ"}, "key 'x' seems to hold the picture"),
    (PICTURELESS | {"image": None, "file": "photos/1.png"}, ""),  # it says that there is none
    (item(0) | {"thumbnail": "photos/2.png"}, ""),
    ({"question": "Which?", "choices": ["x", "y"], "answer": None, "ans": "B"}, ""),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ITEMS)
def test_one_bad_item(tmp_path: Path, raw: Path, bad: Any, reason: str) -> None:
    lines = [json.dumps(item(n)) for n in range(1, 20)]
    lines.insert(4, bad if isinstance(bad, str) else json.dumps(bad))
    file = raw / "mine.jsonl"
    file.write_text("\n".join(lines))
    manifest = jsonl.prepare(file, tmp_path / "out", max_rejected=0.05)
    assert manifest["rejected"]["total"] == bool(reason)
    if reason:
        (line,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").open())
        assert line["id"] == "line 5"
        assert line["reason"].startswith(reason)


def told(manifest: dict[str, Any]) -> dict[str, int]:
    """The notes that the reader made."""
    own = ("questions with repeated", "questions where", "questions without", "pictures in more")
    return {note: n for note, n in manifest["notes"].items() if not note.startswith(own)}


def test_other_tools_spellings(tmp_path: Path, raw: Path) -> None:
    """Each is a question with its picture, and the summary says how it was read."""
    plain = {"question": "Which?", "choices": ["A cat.", "A dog."]}
    asked = "<image>\nWhich?\nA. A cat.\nB. A dog."
    picture = str(raw / "photos/1.png")
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "B"}]
    parts = [{"type": "image"}, {"type": "text", "text": asked.removeprefix("<image>\n")}]
    trl = [{"role": "user", "content": parts}, {"role": "assistant", "content": "B"}]
    items: list[dict[str, Any]] = [
        {**plain, "images": [picture], "label": 1},
        {"question": "Which?", "options": ["A. A cat.", "B. A dog."], "img": picture, "gt": "B"},
        {"query": asked, "response": "B", "images": [picture]},
        {"messages": messages, "images": [picture]},
        {"messages": trl, "images": [picture]},
        {**plain, "answer": 1.0, "image": {"path": picture}, "category": None, "id": 7.0},
        {"question": "Which?", "A": "A cat.", "B": "A dog.", "answer": "B", "image_path": picture},
        {
            "question": "<image>Which?",
            "choices": ["A cat.", "A dog."],
            "answer": 1,
            "image": picture,
        },
        {"conversations": [{"from": "human", "value": asked[8:]}, {"from": "gpt", "value": "B"}]}
        | {"image": picture},
    ]
    manifest = jsonl.prepare({"train": write_lines(raw / "a.jsonl", items)}, tmp_path / "out")
    assert manifest["rejected"]["total"] == 0
    train = load_split(tmp_path / "out", "train")
    assert len(train) == len(items)
    for example in train:
        assert example.image is not None, example.id
        assert (example.question, example.choices) == ("Which?", ("A cat.", "A dog."))
        assert example.answer == 1
    notes = told(manifest)
    assert notes["key 'images' read as 'image'"] == 4
    assert notes["a picture without <image> in the conversation; it stands in front"] == 1
    assert notes["options read from the question's text"] == 1
    assert notes["keys 'A', 'B', ... read as 'choices'"] == 1


def test_options_without_their_letters(tmp_path: Path, raw: Path) -> None:
    lettered = item(0, choices=["A. Red.", "B. Blue."], answer="B. Blue.")
    manifest = jsonl.prepare({"test": write_lines(raw / "a.jsonl", [lettered])}, tmp_path / "out")
    (example,) = load_split(tmp_path / "out", "test")
    assert (example.choices, example.answer) == (("Red.", "Blue."), 1)
    assert told(manifest) == {
        "questions whose options came with letters of their own, taken off": 1
    }


def test_ids_that_repeat(tmp_path: Path, raw: Path) -> None:
    """As LLaVA's own files have them; only the very same record is left out."""
    items = [item(n, id="000000033471") for n in (0, 1, 2, 0, 1)]
    items += [item(4, id="000000033471~2"), item(5), item(5)]
    manifest = jsonl.prepare({"train": write_lines(raw / "a.jsonl", items)}, tmp_path / "out")
    name = "train/000000033471"
    assert load_split(tmp_path / "out", "train").ids == [
        *(name, f"{name}~2", f"{name}~3", f"{name}~2~2", "train/line 7", "train/line 8")
    ]
    assert manifest["left_out"] == {jsonl.SAME_AGAIN: 2}
    assert told(manifest) == {"id met before, told apart by a number behind it": 3}
    assert manifest["records"] == {
        **{"source": 8, "read": 8, "prepared": 6, "rejected": 0, "left_out": 2}
    }


@pytest.mark.parametrize("form", ["pretty", "one line", "comma lines", "list lines"])
def test_forms_of_files(tmp_path: Path, raw: Path, form: str) -> None:
    items = [item(n) for n in range(4)]
    lines = [json.dumps(one) for one in items]
    content = {
        "pretty": json.dumps({"version": "1", "data": items}, indent=2),
        "one line": json.dumps({"questions": items}),
        "comma lines": ",\n".join(lines) + ",",
        "list lines": "[\n" + ",\r\n".join(lines) + "\n]\n",
    }[form]
    (raw / "a.json").write_text(content, encoding="utf-16")
    manifest = jsonl.prepare({"train": raw / "a.json"}, tmp_path / "out", max_rejected=0)
    assert len(load_split(tmp_path / "out", "train")) == 4
    wrapped = {"pretty": "taken from the list under 'data'"}
    wrapped["one line"] = "taken from the list under 'questions'"
    assert told(manifest) == ({wrapped[form]: 4} if form in wrapped else {})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"train": [{"a": 1}], "test": [{"b": 2}]}, r"several lists in it \(train, test\)"),
        ({"1": {"question": "?"}, "2": {"question": "?"}}, "without a list of questions"),
        ({"data": {"list": [{"question": "?"}]}}, "without a list of questions"),
    ],
)
def test_objects_that_could_mean_several_things(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content, indent=1))
    with pytest.raises(UserError, match=words):
        jsonl.prepare(tmp_path / "a.json", tmp_path / "out")


def test_objects_over_several_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\n".join(json.dumps(item(n), indent=1) for n in range(3)))
    with pytest.raises(UserError, match="put each on one"):
        jsonl.prepare(tmp_path / "a.json", tmp_path / "out")


@pytest.mark.parametrize("first", ["twice", "behind"])
def test_a_first_line_that_is_broken_is_refused_alone(
    tmp_path: Path, raw: Path, first: str
) -> None:
    bad = json.dumps(item(0))[:-1] + ', "answer": "B"}' if first == "twice" else "{} \0"
    lines = [bad, *(json.dumps(item(n)) for n in range(1, 4))]
    (raw / "a.jsonl").write_text("\n".join(lines))
    manifest = jsonl.prepare(raw / "a.jsonl", tmp_path / "out", max_rejected=0.5)
    assert (manifest["records"]["prepared"], manifest["records"]["rejected"]) == (3, 1)


def test_an_object_of_columns(tmp_path: Path) -> None:
    for question in (["What?", "Who?"], {"0": "What?"}):
        columns = {"question": question, "choices": [["a", "b"]] * 2, "answer": ["A", "B"]}
        (tmp_path / "a.json").write_text(json.dumps(columns))
        with pytest.raises(UserError, match="JSON object of columns"):
            jsonl.prepare(tmp_path / "a.json", tmp_path / "out")


def test_nothing_but_what_is_left_out(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Who is it?"}, {"from": "gpt", "value": "A man."}]
    (tmp_path / "a.json").write_text(json.dumps([{"conversations": talk}]))
    with pytest.raises(UserError, match="1 left out: turns of conversations without options"):
        jsonl.prepare(tmp_path / "a.json", tmp_path / "out", form="multiple-choice")


def test_a_list_with_holes_in_an_object(tmp_path: Path, raw: Path) -> None:
    (raw / "a.json").write_text(json.dumps({"data": [item(0), None, item(1), 3]}))
    manifest = jsonl.prepare({"test": raw / "a.json"}, tmp_path / "out", max_rejected=0.5)
    assert manifest["rejected"]["by_reason"] == {"not a JSON object": 2}
    assert manifest["records"]["source"] == 4


def test_a_record_nested_too_deeply(tmp_path: Path) -> None:
    class Deep(Items):
        def __iter__(self) -> Iterator[Item]:
            deep: Any = None
            for _ in range(5000):
                deep = [deep]
            yield "line 1", item(0, image=deep)

    found = list(jsonl.read(Deep(tmp_path / "a.jsonl"), "train", Pictures(), "auto"))
    assert found == [Rejected("train/line 1", "train", "nested too deeply")]


def test_what_would_be_shown_twice_or_not_at_all(tmp_path: Path, raw: Path) -> None:
    talk = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Which?\nA. x\nB. y"},
        {"from": "gpt", "value": "A"},
    ]
    items = [
        {"question": "Which?\n(A) x\n(B) y", "choices": ["x", "y"], "answer": "A"},
        {"conversations": talk},
    ]
    manifest = jsonl.prepare({"test": write_lines(raw / "a.jsonl", items)}, tmp_path / "out")
    assert [one.question for one in load_split(tmp_path / "out", "test")] == ["Which?"] * 2
    assert told(manifest) == {
        "options taken out of the question's text, where they stood as well": 1,
        "a system turn, which is not shown": 1,
    }


def test_a_key_given_twice(tmp_path: Path, raw: Path) -> None:
    good = [json.dumps(item(n)) for n in range(3)]
    same = good[0][:-1] + ', "answer": "A"}'
    other = good[0][:-1] + ', "answer": "B"}'
    for name, content in (("a.jsonl", "\n".join([*good, same, other])), ("a.json", "")):
        text = content or "[" + ",".join([*good, same, other]) + "]"
        (raw / name).write_text(text)
        manifest = jsonl.prepare(raw / name, tmp_path / name, max_rejected=0.5)
        assert manifest["rejected"]["by_reason"] == {
            "a key stands twice in one object, with different values": 1
        }
        assert manifest["records"]["source"] == 5


def test_one_picture_in_two_formats_is_one_picture(tmp_path: Path, raw: Path) -> None:
    """Also where it stands there as bytes once and as a file once."""
    items = []
    for number in range(10):
        picture = Image.open(raw / f"photos/{number}.png")
        picture.save(raw / f"photos/{number}.bmp")
        data = base64.b64encode((raw / f"photos/{number}.png").read_bytes()).decode()
        for image in (f"photos/{number}.png", f"photos/{number}.bmp", data):
            items.append(item(len(items), image=image))
    file = write_lines(raw / "a.jsonl", items)
    jsonl.prepare(file, tmp_path / "out", shares=(0.4, 0.3, 0.3))
    split_of = {
        int(name.removeprefix("line ")): split
        for split, names in questions(tmp_path / "out").items()
        for name in names
    }
    assert len(set(split_of.values())) == 3
    for number in range(10):
        assert len({split_of[3 * number + at] for at in (1, 2, 3)}) == 1
    assert len(list((tmp_path / "out/images").iterdir())) == 20
    assert check.main([str(tmp_path / "out")]) == 0


def test_a_broken_picture_is_rejected_by_name(tmp_path: Path, raw: Path) -> None:
    (raw / "photos/1.png").write_bytes(torn())
    file = write_lines(raw / "mine.jsonl", [item(n) for n in range(40)])
    manifest = jsonl.prepare(file, tmp_path / "out", max_rejected=0.05)
    assert manifest["rejected"]["by_reason"] == {"truncated picture": 2}


def test_the_command(tmp_path: Path, raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [item(n, choices=["1", "2", "3"], answer=n % 3) for n in range(20)]
    train = write_lines(tmp_path / "lists" / "a.jsonl", numbers)
    test = write_lines(tmp_path / "lists" / "b.jsonl", numbers)
    out = ["--out", str(tmp_path / "out"), "--images", str(raw)]
    splits = ["--split", f"train={train}", "--split", f"val={test}"]
    jsonl.main([*splits, *out, "--answers", "index"])
    assert list(questions(tmp_path / "out")) == ["train", "validation"]
    out_text = capsys.readouterr().out
    assert "10 pictures in more than one split (kept)" in out_text
    sums = "40 rows of the source made 40 records: 40 prepared + 0 rejected + 0 left out"
    assert sums in out_text
    assert "no split 'test': training works" in out_text
    for argv, words in (
        ([], "give either --source FILE or --split"),
        (["--source", str(train), *splits], "give either"),
        (["--split", "train"], "--split train is not NAME=FILE"),
        (["--split", "train=a", "--split", "train=b"], "given twice"),
        (["--split", f"exam={train}"], "unknown split 'exam'"),
        (["--source", str(tmp_path)], "is a folder"),
        (["--source", str(tmp_path / "none")], "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            jsonl.main([*argv, "--out", str(tmp_path / "new")])
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(UserError, match="begins like a JSON list"):
        jsonl.main(["--source", str(tmp_path / "bad.json"), "--out", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--shares", "1,2", "'1,2' is not three shares such as 0.8,0.1,0.1"),
        ("--shares", "1,x,2", "is not three shares"),
        ("--shares", "0,0,0", "is not three shares"),
        ("--shares", "nan,1,1", "is not three shares"),
        ("--shares", "1,-1,1", "is not three shares"),
        ("--max-rejected", "1.5", "'1.5' is not a share from 0 to 1"),
        ("--max-rejected", "all", "'all' is not a share from 0 to 1"),
        ("--workers", "0", "'0' is not a whole number above 0"),
        ("--workers", "two", "'two' is not a whole number above 0"),
    ],
)
def test_flags_that_make_no_sense(
    flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        jsonl.main(["--source", "a", "--out", "b", flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: " in (told := capsys.readouterr().err)
    assert message in told


def test_the_example_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are written and its commands run as they stand there."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"<!-- file: (\S+) -->\n+```\w*\n(.*?)```", text, re.DOTALL))
    commands = re.findall(r"<!-- run -->\n+```\w*\n(.*?)```", text, re.DOTALL)
    assert set(files) == {"mine.jsonl", "talk.json"}
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        for picture in re.findall(r'"image": "([^"]+)"', content):
            (tmp_path / picture).parent.mkdir(exist_ok=True)
            (tmp_path / picture).write_bytes(shade(len(picture) + ord(picture[-5])))
    before = set(tree(tmp_path))
    lines = [line for block in commands for line in block.splitlines()]
    assert len(lines) >= 3
    for line in lines:
        program, script, *arguments = shlex.split(line)
        assert program == "python"
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert not ended.value.code, line
    assert set(tree(tmp_path)) > before
