"""What is not there is said at once, without asking the hub."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import transformers.utils.hub

import vlmoe.adapter.load
from vlmoe.adapter.load import find_adapter
from vlmoe.errors import UserError
from vlmoe.hub import why_not_hub
from vlmoe.models.load import load_base, load_reader


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder with a folder ``runs``, and a hub that nobody may ask."""

    def asked(*args, **options):
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(vlmoe.adapter.load, "hf_hub_download", asked)
    monkeypatch.setattr(transformers.utils.hub, "hf_hub_download", asked)
    return tmp_path


@pytest.mark.parametrize("name", ["runs/mine", "runs/mine/adapter", "./mine", "mine", "/no/where"])
def test_a_path_that_is_not_there(name):
    for load in (find_adapter, load_base, load_reader):
        with pytest.raises(UserError, match="no such directory") as caught:
            load(name)
        assert "not to be had" not in str(caught.value)


def test_where_runs_are_written_is_no_users_name(here):
    (here / "runs").rmdir()
    with pytest.raises(UserError, match=r"there is no adapter at runs/mine: no such directory$"):
        find_adapter("runs/mine")


def test_a_slip_in_the_built_in_bases_name():
    with pytest.raises(UserError, match=r"did you mean 'tiny'\?"):
        load_base("tinny")


def test_a_file():
    for load in (find_adapter, load_base):
        with pytest.raises(UserError, match="file"):
            load("file")


def test_what_may_be_on_the_hub(monkeypatch):
    assert why_not_hub("someone/model", "config.json") is None
    assert "runs/ is one" in (why_not_hub("runs/mine", "config.json") or "")
    # A folder of that name is no hindrance to what was downloaded before.
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: "/cached")
    assert why_not_hub("runs/mine", "config.json") is None
