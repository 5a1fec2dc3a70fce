"""Several datasets as one: names, selections, and the shares they are given."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from tests.visual7w_source import write_source
from vlmoe.data.mix import Mixture, draw, load_mixture, picture_keys, shares
from vlmoe.data.registry import label, locate_all, names_of
from vlmoe.data_prep import visual7w
from vlmoe.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("mixture")
    for name, images, splits in (("a", 3, ("train",)), ("b", 6, ("train", "test"))):
        write_source(root / "raw" / name, images=images, questions=2, splits=splits)
        visual7w.prepare(root / "raw" / name, root / name)
    return {"a": root / "a", "b": root / "b"}


@pytest.fixture
def mixture(folders: dict[str, Path]) -> Mixture:
    return load_mixture(folders, "train")


def test_one_after_the_other(mixture: Mixture) -> None:
    assert mixture.sizes == [6, 6]
    assert [example.dataset for example in mixture] == ["a"] * 6 + ["b"] * 6
    assert mixture[-1].id == mixture.text(11).id == mixture.parts["b"][5].id
    assert mixture.text(0).image is None
    assert mixture[0].image is not None
    assert mixture.answers == [example.answer for example in mixture]
    assert mixture.image_key(6) == mixture.parts["b"].image_key(0)
    for index in (12, -13):
        with pytest.raises(IndexError):
            mixture[index]


def test_selections_keep_their_parts(mixture: Mixture) -> None:
    chosen = mixture.select([1, 4, 7])
    assert [(e.dataset, e.id) for e in chosen] == [
        (mixture[at].dataset, mixture[at].id) for at in (1, 4, 7)
    ]
    assert mixture[7:].sizes == [0, 5]
    assert list(mixture[7:].parts) == ["a", "b"]
    with pytest.raises(ValueError, match="must rise"):
        mixture.select([3, 3])
    again = pickle.loads(pickle.dumps(chosen))
    assert [example.id for example in again] == [example.id for example in chosen]


def test_pictures_of_two_datasets_are_never_the_same(mixture: Mixture) -> None:
    keys = mixture.image_keys
    assert len(keys) == len(mixture)
    assert [None if key is None else key[1] for key in keys] == [
        mixture.image_key(at) for at in range(len(mixture))
    ]
    assert {key[0] for key in keys if key} == set(mixture.parts)
    assert picture_keys(mixture) == keys
    loaded = [mixture[0], mixture[1], mixture[0]]
    found = picture_keys(loaded)
    assert found[0] == id(loaded[0].image)


def test_draw(mixture: Mixture) -> None:
    assert draw(mixture, 0, 1) is mixture
    assert draw(mixture, 12, 1) is mixture
    rows = sorted(random.Random(5).sample(range(12), 4))
    assert [e.id for e in draw(mixture, 4, 5)] == [mixture[row].id for row in rows]


def test_a_split_that_not_all_have(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no split 'test'"):
        load_mixture(folders, "test")
    assert list(load_mixture(folders, "test", everywhere=False).parts) == ["b"]
    with pytest.raises(UserError, match="no split 'exam'"):
        load_mixture(folders, "exam", everywhere=False)


def test_names(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = map(str, folders.values())
    assert locate_all(f"{a}+{b}") == {"a": folders["a"], "b": folders["b"]}
    assert locate_all(a) == {"a": folders["a"]}
    assert label(f"{a}+{b}") == "a+b"
    with pytest.raises(UserError, match="names a dataset twice"):
        locate_all(f"{a}+{a}/")
    # A folder may have a plus sign of its own; equal last parts are told apart.
    odd = folders["a"].parent / "x+y" / "a"
    odd.parent.mkdir()
    odd.symlink_to(folders["b"])
    assert names_of(str(odd)) == [str(odd)]
    same = folders["b"].parent / "other" / "a"
    same.parent.mkdir()
    same.symlink_to(folders["b"])
    assert list(locate_all(f"{a}+{same}")) == [a, str(same)]


def test_shares() -> None:
    assert shares("proportional", [30, 10]) == [Fraction(3, 4), Fraction(1, 4)]
    assert shares("equal", [30, 10, 5]) == [Fraction(1, 3)] * 3
    assert shares("0.3,0.7", [1, 1]) == [Fraction(3, 10), Fraction(7, 10)]
    assert shares("3,7", [1, 1]) == shares("0.3, 0.7", [1, 1])
    assert Counter(shares("1", [4])) == {Fraction(1): 1}
    for mix, words in (
        ("evenly", "mix must be proportional, equal, or numbers"),
        ("1,x", "mix must be"),
        ("1/0,1", "mix must be"),
        ("nan,1", "mix must be"),
        ("0,1", "above 0"),
        ("-1,1", "above 0"),
        ("0.2,0.3,0.5", "3 numbers for 2 datasets"),
        ("1", "1 numbers for 2 datasets"),
    ):
        with pytest.raises(UserError, match=words):
            shares(mix, [1, 1])
