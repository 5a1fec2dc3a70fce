"""The task files that are written, as text: the kits' own reading of them is in test_kits.py."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil

import pytest
import yaml
from PIL import Image

from tests.demo.conftest import shapes_directory  # noqa: F401
from vlmoe.data.dataset import load_split
from vlmoe.errors import UserError
from vlmoe.kits.tasks import main
from vlmoe.models import tiny_text

csv.field_size_limit(10**9)


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture
def without_template(tmp_path) -> str:
    """``tiny-text`` as a checkpoint that has no conversation of its own."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_text.folder(), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({key: kept[key] for key in kept if key != "chat_template"}))
    return str(folder)


@pytest.mark.parametrize("kit", ["lmms-eval", "lm-eval", "lm-eval plain"])
@pytest.mark.filterwarnings("ignore:.*has no chat template")
def test_yaml(shapes_directory, without_template, tmp_path, capsys, kit):  # noqa: F811
    kit, _, plain = kit.partition(" ")
    model = {"lm-eval": ["--model", without_template if plain else "tiny-text"]}.get(kit, [])
    main(["--kit", kit, "--dataset", str(shapes_directory), "--out", str(tmp_path / "tasks"),
          *model])  # fmt: skip
    task = yaml.load((tmp_path / "tasks" / "vlmoe_shapes_test.yaml").read_text(), Loader)
    names: dict = {}
    exec((tmp_path / "tasks" / "utils.py").read_text(), names)
    functions = {value.removeprefix("utils.") for value in task.values()
                 if isinstance(value, str) and value.startswith("utils.")}  # fmt: skip
    assert functions
    assert functions <= names.keys()
    told = capsys.readouterr().out
    assert f"--tasks {task['task']}" in told
    if kit == "lm-eval":
        assert ("--apply_chat_template" in told) == (not plain)
        assert task["doc_to_text"] == ("utils.completed" if plain else "utils.asked")


def test_lm_eval_needs_to_know_the_base(shapes_directory, tmp_path):  # noqa: F811
    for flags in (["--kit", "lm-eval"], ["--kit", "lmms-eval", "--model", "tiny"]):
        with pytest.raises(UserError, match="--model"):
            main([*flags, "--dataset", str(shapes_directory), "--out", str(tmp_path)])


def test_table(shapes_directory, tmp_path):  # noqa: F811
    main(["--kit", "vlmevalkit", "--dataset", str(shapes_directory), "--out", str(tmp_path)])
    text = (tmp_path / "vlmoe_shapes_test.tsv").read_text()
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    questions = load_split(shapes_directory, "test")
    assert len(rows) == len(questions)
    for row, question in zip(rows, questions, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(row["image"])))
        assert shown.tobytes() == question.image.tobytes()
        assert (row["question"], row["answer"]) == (question.question, question.letter)
        assert [row[letter] for letter in "ABCD"[: len(question.choices)]] == [*question.choices]


def test_a_dataset_that_is_not_there(tmp_path):
    for kit in ("lmms-eval", "vlmevalkit"):
        with pytest.raises(UserError, match="nowhere"):
            main(["--kit", kit, "--dataset", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
