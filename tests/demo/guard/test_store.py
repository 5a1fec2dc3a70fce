"""Whose a file is, and how much room there is for them."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vlmoe.demo.guard.store import Full, Store, Who, plain_name

ME = Who("1.1.1.1", visitor="a" * 43, user="me", session="one")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path, clock) -> Store:
    return Store(tmp_path, most=100, each=50, keep=600, apiece=0, clock=clock)


def put(store: Store, who: Who = ME, size: int = 10, name: str = "x.png") -> str:
    with store.reserve(who, size) as reserved:
        return store.put(reserved, name, io.BytesIO(bytes(size)), size)


def test_it_is_its_senders(store):
    path = put(store)
    assert store.find(path, ME, use=True) == Path(path)
    for other in (
        replace(ME, session="two"),
        replace(ME, session=None),
        replace(ME, visitor="b" * 43),
        replace(ME, visitor=None),
        replace(ME, user=None),
        Who(),
    ):
        assert store.find(path, other, use=True) is None
    assert store.find(path, replace(ME, session=None)) == Path(path)  # his browser shows it
    assert store.find(path, replace(ME, visitor="b" * 43)) is None


def test_without_a_cookie_the_first_use_makes_it_ones_own(store):
    path = put(store, Who("1.1.1.1"))
    user = Who("1.1.1.1", session="one")
    assert store.find(path, user, use=True)
    assert store.find(path, user, use=True)
    assert store.find(path, replace(user, session="two"), use=True) is None
    assert store.find(path, replace(user, visitor="a" * 43), use=True) is None
    assert store.find(path, replace(user, visitor="a" * 43)) is None


def test_paths_cannot_be_guessed(store):
    assert len({put(store, size=1) for _ in range(10)}) == 10
    assert all(len(Path(put(store, size=1)).parent.name) > 40 for _ in range(3))


def test_nothing_is_looked_at_that_is_not_ones_own(store, tmp_path, monkeypatch):
    other = tmp_path / "private.png"
    other.write_bytes(b"x")
    link = Path(put(store)).parent / "link.png"
    link.symlink_to(other)

    def looks(*_, **__):
        raise AssertionError("it looks at the disk")

    for name in ("stat", "lstat", "open", "utime", "readlink", "access"):
        monkeypatch.setattr(os, name, looks)
    own = str(store.folder)
    for path in (
        str(other), str(link), "private.png", f"{own}/../private.png", own, "/nowhere", "", "\0",
        None, 3, ["x"], {"a": 1}, f"file://{other}",
    ):  # fmt: skip
        assert store.find(path, ME, use=True) is None


def test_a_link_in_its_place_leads_nowhere(store, tmp_path):
    private = tmp_path / "private"
    private.write_bytes(b"x")
    path = Path(put(store))
    path.unlink()
    path.symlink_to(private)
    assert store.find(str(path), ME) is None
    other = Path(put(store))
    other.parent.rename(tmp_path / "moved")
    other.parent.symlink_to(tmp_path / "moved")
    assert store.find(str(other), ME) is None


def test_the_pages_own(store, tmp_path):
    example = tmp_path / "example.png"
    example.write_bytes(b"x")
    assert store.find(str(example), ME) is None
    store.own(example)
    assert store.find(str(example), ME) == example
    before = example.stat()
    assert store.find(str(example), Who(), use=True) == example
    assert example.stat() == before
    shown = store.keep_for_all("picture.png", io.BytesIO(b"xyz"), 3)
    assert store.find(shown, ME, use=True)
    assert store.find(shown, Who(), use=True)


def test_the_oldest_of_ones_own_go(store, clock):
    first = put(store, size=20)
    second = put(store, size=20)
    clock.now = 1
    store.find(first, ME)
    put(store, size=20)
    assert not Path(second).exists()
    assert not Path(second).parent.exists()
    assert store.find(first, ME)
    assert store.size == 40


def test_an_empty_file_takes_room_too(tmp_path):
    store = Store(tmp_path, most=100, each=50, apiece=20)
    paths = [put(store, size=1) for _ in range(5)]
    assert [Path(path).exists() for path in paths] == [False] * 3 + [True] * 2
    assert store.size == 42
    with pytest.raises(Full), store.reserve(ME, 0, files=3):
        pass
    assert Store(tmp_path).apiece > 0


def test_nobody_elses_go(store):
    mine = put(store, size=50)
    put(store, Who("2.2.2.2"), size=50)
    with pytest.raises(Full):
        put(store, Who("3.3.3.3"), size=10)
    assert store.find(mine, ME)


def test_what_is_being_received_counts(store):
    with store.reserve(ME, 40), pytest.raises(Full):
        put(store, size=20)
    with pytest.raises(Full):
        put(store, size=51)
    put(store, size=50)
    assert store.size == 50


def test_what_was_broken_off_counts_no_more(store):
    with pytest.raises(ConnectionError), store.reserve(ME, 50):
        raise ConnectionError
    assert store.size == 0
    with store.reserve(ME, 50) as reserved:
        store.put(reserved, "x", io.BytesIO(b"12345"), 5)
        with pytest.raises(Full):
            store.put(reserved, "x", io.BytesIO(bytes(46)), 46)
    assert store.size == 5


def test_what_is_old_makes_room(store, clock):
    path = put(store, Who("2.2.2.2"), size=50)
    put(store, size=50)
    clock.now = 599
    with pytest.raises(Full):
        put(store, Who("3.3.3.3"))
    clock.now = 601
    put(store, Who("3.3.3.3"))
    assert not Path(path).exists()
    assert store.size == 10


def test_what_was_removed_is_nobodys(store):
    path = put(store)
    Path(path).unlink()
    assert store.find(path, ME) is None


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ("scene.png", "scene.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.PNG", "b.PNG"),
        ("\u00e4 b.png", "b.png"),
        ("...", "file"),
        ("", "file"),
        (".png", "png"),
        ("x" * 300 + ".jpeg", "x" * 80 + ".jpeg"),
        ("a\0b\n.png", "a-b-.png"),
    ],
)
def test_plain_names(given, plain):
    assert plain_name(given) == plain
