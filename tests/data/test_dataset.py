"""A prepared dataset read back: examples, grouping, moving, workers, and damaged folders."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.visual7w_source import write_source
from vlmoe.data.dataset import ExampleDataset, is_prepared, load_split
from vlmoe.data.image import ImageError
from vlmoe.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vlmoe.data_prep.visual7w import prepare

    folder = tmp_path_factory.mktemp("dataset")
    write_source(folder / "source", images=6, questions=3)
    prepare(folder / "source", folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def prepared(original: Path, tmp_path: Path) -> Path:
    """A copy to damage; its own pictures must be used, not the original's."""
    return Path(shutil.copytree(original, tmp_path / "copy"))


def change_manifest(prepared: Path, **changes: Any) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    (prepared / "manifest.json").write_text(json.dumps(manifest | changes))


def save_train(prepared: Path, rows: datasets.Dataset) -> None:
    rows.save_to_disk(str(prepared / "new"))  # it refuses to overwrite what it was read from
    shutil.rmtree(prepared / "train")
    (prepared / "new").rename(prepared / "train")


def test_examples(original: Path) -> None:
    examples = load_split(original, "train")
    assert isinstance(examples, ExampleDataset)
    assert len(examples) == 6
    first = examples[0]
    assert first.id == "5001"
    assert first.image is not None
    assert (first.image.mode, first.image.size) == ("RGB", (48, 32))
    assert first.question == "What colour is it?"
    assert sorted(first.choices) == ["Blue.", "Green.", "Red.", "Yellow."]
    assert first.choices[first.answer] == "Red."
    assert first.category == "what"
    assert examples[-1].id == examples.ids[-1] == "5012"
    assert [example.id for example in examples] == examples.ids
    assert examples.categories == ["what", "how", "what"] * 2
    with pytest.raises(IndexError):
        examples[6]


def test_text_alone_decodes_nothing(prepared: Path) -> None:
    shutil.rmtree(prepared / "images")
    (prepared / "images").mkdir()
    example = load_split(prepared, "train").text(0)
    assert example.image is None
    assert example.id == "5001"


def test_a_pictures_size_is_known_without_it(prepared: Path) -> None:
    """New datasets store it; of old ones it is read off the file's header; or it is not known."""
    examples = load_split(prepared, "train")
    assert examples.text(0).size == examples[0].size == (32, 48)
    shutil.rmtree(prepared / "images")
    assert examples.text(0).size == (32, 48)
    assert pickle.loads(pickle.dumps(examples.text(0))).size == (32, 48)


def test_sizes_of_datasets_that_were_prepared_without_them(prepared: Path) -> None:
    whole = load_split(prepared, "train")
    table = whole._table.drop_columns(["height", "width"])
    examples = ExampleDataset(whole.directory, "train", table)
    assert [examples.text(at).size for at in range(6)] == [one.size for one in examples]
    sideways = Image.new("RGB", (48, 32))
    exif = sideways.getexif()
    exif[0x0112] = 6
    for file in (prepared / "images").iterdir():
        sideways.save(file, "JPEG", exif=exif)
    assert examples.text(0).size == load_split(prepared, "train")[0].size == (48, 32)
    for file in (prepared / "images").iterdir():
        file.write_bytes(b"no picture")
    assert examples.text(0).size is None


def test_image_key_groups_questions(original: Path, prepared: Path) -> None:
    here, there = load_split(original, "train"), load_split(prepared, "train")
    keys = [here.image_key(i) for i in range(len(here))]
    assert keys[0] == keys[1] == keys[2] != keys[3] == keys[4] == keys[5]
    assert keys == [there.image_key(i) for i in range(len(there))]


def test_image_keys_are_those_of_each_question(original: Path) -> None:
    examples = load_split(original, "train").select([4, 0, 1])
    assert examples.image_keys == [examples.image_key(i) for i in range(3)]
    assert examples.image_keys[1] == examples.image_keys[2] != examples.image_keys[0]


def test_a_picture_is_decoded_once_for_neighbours(original: Path) -> None:
    examples = load_split(original, "train")
    first, second, other = examples[0], examples[1], examples[3]
    assert first.image is second.image
    assert other.image is not first.image
    assert examples[0].image == first.image


def test_selections(original: Path) -> None:
    examples = load_split(original, "train")
    chosen = examples.select([4, 0, 2])
    assert chosen.ids == ["5011", "5001", "5003"]
    assert chosen[0].id == "5011"
    assert chosen.image_key(0) == examples.image_key(4)
    assert chosen.select([2, -3]).ids == ["5003", "5011"]
    assert examples[1:3].ids == ["5002", "5003"]
    assert examples[::-2].ids == ["5012", "5010", "5002"]
    with pytest.raises(IndexError):
        examples.select([6])


def test_pickle_is_small_and_complete(original: Path) -> None:
    chosen = load_split(original, "train").select([4, 0])
    chosen.ids  # noqa: B018  a cached list must not travel along
    data = pickle.dumps(chosen)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.ids == chosen.ids
    assert again[1] == chosen[1]


def test_worker_processes(original: Path) -> None:
    from torch.utils.data import DataLoader

    examples = load_split(original, "train")
    loader = DataLoader(
        examples, batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context="fork"
    )
    assert [example.id for batch in loader for example in batch] == examples.ids


def test_a_moved_dataset_finds_its_pictures(tmp_path: Path) -> None:
    from vlmoe.data_prep.visual7w import prepare

    write_source(tmp_path / "source", images=3, questions=1)
    prepare(tmp_path / "source", tmp_path / "old")
    before = load_split(tmp_path / "old", "test")[0]
    (tmp_path / "old").rename(tmp_path / "new")
    assert load_split(tmp_path / "new", "test")[0] == before


def test_a_copy_uses_its_own_pictures(prepared: Path) -> None:
    examples = load_split(prepared, "train")
    (prepared / "images" / str(examples.image_key(0))).write_bytes(b"")
    with pytest.raises(ImageError, match=r"question 5001, .*copy/images/v7w_101.jpg: empty file"):
        examples[0]


def test_embedded_pictures_and_none(prepared: Path) -> None:
    """What ``save_to_disk`` makes of it, as after a trip over the hub."""
    rows = datasets.load_from_disk(str(prepared))["train"]
    rows = rows.map(
        lambda row, i: row | {"image": row["image"] if i < 3 else None}, with_indices=True
    )
    save_train(prepared, rows)
    shutil.rmtree(prepared / "images")
    examples = load_split(prepared, "train")
    assert examples[0].image is not None
    assert examples[0].image.size == (48, 32)
    assert examples[3].image is None
    assert examples.image_key(0) == examples.image_key(1) is not None
    assert examples.image_key(3) is None


# --- folders that cannot be used ------------------------------------------------------------


def fails(prepared: Path, match: str, split: str = "train") -> None:
    with pytest.raises(UserError, match=match) as caught:
        load_split(prepared, split)
    assert len(str(caught.value).splitlines()) == 1


def test_no_prepared_dataset(tmp_path: Path, prepared: Path) -> None:
    fails(tmp_path / "none", "no such folder")
    fails(tmp_path, "not a prepared dataset")
    assert not is_prepared(tmp_path)
    assert is_prepared(prepared)
    for text in (
        "{",
        "[]",
        "{}",
        '{"format": 1, "splits": [1]}',
        '{"format": 1, "splits": {"a": 1}}',
    ):
        (prepared / "manifest.json").write_text(text)
        fails(prepared, "damaged")
    (prepared / "manifest.json").write_bytes(b"\xff\xfe{")
    fails(prepared, "damaged")


def test_another_format(prepared: Path) -> None:
    change_manifest(prepared, format=3)
    fails(prepared, "is in format 3, this vlmoe reads 1 to 2")


def test_no_such_split(prepared: Path) -> None:
    fails(prepared, r"no split 'val' \(it has train, validation, test\)", split="val")


def test_missing_and_wrong_columns(prepared: Path) -> None:
    rows = datasets.load_from_disk(str(prepared))["train"].remove_columns(["category", "image"])
    rows = rows.cast_column("answer", datasets.Value("string"))
    save_train(prepared, rows)
    fails(
        prepared,
        "no column 'image'; column 'answer' holds string, expected whole numbers; "
        "no column 'category'",
    )


def test_incomplete_copies(prepared: Path) -> None:
    arrow = prepared / "train" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:900])
    fails(prepared, "cannot be read|copy is incomplete")
    arrow.unlink()
    fails(prepared, "cannot be read")
    shutil.rmtree(prepared / "train")
    fails(prepared, "cannot be read")
    change_manifest(prepared, splits={"test": {"questions": 7}, "validation": {"questions": 6}})
    fails(prepared, "6 questions, but manifest.json says 7", split="test")
