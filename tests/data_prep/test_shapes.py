"""Rendered scenes: which questions are asked of them."""

from __future__ import annotations

import pytest

from vlmoe.data.dataset import read_manifest
from vlmoe.data.mix import load_mixture
from vlmoe.data_prep import shapes

FEW = ["--train", "6", "--val", "2", "--test", "2"]


def test_all_kinds_of_questions(tmp_path):
    shapes.main(["--out", str(tmp_path / "all"), "--train", "30", "--val", "2", "--test", "2"])
    manifest = read_manifest(tmp_path / "all")
    assert tuple(sorted(manifest["splits"]["train"]["categories"])) == shapes.KINDS
    assert manifest["source"] == "rendered by vlmoe.data.scenes, seed 0"


def test_some_kinds_of_questions(tmp_path):
    out = tmp_path / "some"
    shapes.main(["--out", str(out), *FEW, "--kinds", "shape", "colour"])
    manifest = read_manifest(out)
    assert manifest["source"].endswith("seed 0, questions of colour, shape")
    for split, numbers in manifest["splits"].items():
        assert set(numbers["categories"]) <= {"colour", "shape"}, split
        assert numbers["questions"] == 3 * numbers["pictures"]
    examples = load_mixture({"some": out}, "train")
    assert {examples.text(at).category for at in range(len(examples))} == {"colour", "shape"}


def test_an_unknown_kind_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        shapes.main(["--out", str(tmp_path / "no"), "--kinds", "taste"])
    assert "unknown --kinds 'taste': choose from" in capsys.readouterr().err
