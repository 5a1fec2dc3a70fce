"""An adapter goes to the hub whole or not at all, and whoever takes it from there has the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.models_for_tests import save_small_llava
from tests.push.hub import TOKEN, Hub, Repository, hub
from tests.scripts.conftest import command
from vlmoe.data_prep import shapes
from vlmoe.errors import UserError
from vlmoe.train.record.finished import settings_of

ROOT = Path(__file__).parents[2]
NAME = "me/shapes-small"
OURS = {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.yaml"}
EXPORT = {f"export/{name}" for name in (*(OURS - {"config.yaml"}), "export.json")}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two steps on a base that lies in a folder, in words of its own, and its export."""
    folder = tmp_path_factory.mktemp("push")
    counts = {"train": 8, "val": 2, "test": 4}
    flags = [part for name, count in counts.items() for part in (f"--{name}", str(count))]
    shapes.main(["--out", str(folder / "shapes"), *flags])
    save_small_llava(folder / "base")
    command("train").main(
        [
            *("--dataset", str(folder / "shapes"), "--model", str(folder / "base")),
            *("--optim", "adamw", "--experts", "2", "--top-k", "1", "--rank", "2", "--lr", "0.01"),
            *("--batch-size", "4", "--grad-accum", "1", "--max-steps", "2", "--eval-steps", "0"),
            *("--save-steps", "0", "--prompt", "vmcbench", "--device", "cpu"),
            *("--output", str(folder / "run")),
        ]
    )
    flags = ["--adapter", str(folder / "run"), "--calibration", "4", "--device", "cpu"]
    command("export").main(flags)
    return folder


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


@pytest.fixture
def stand_in(monkeypatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # CI is offline
    with hub() as state:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", state.url)
        yield state


def push(run: Path, *flags: str) -> None:
    command("push").main([str(run), NAME, "--model", "them/small-llava", *flags])


def test_all_is_there(stand_in, run, made, capsys):
    push(run)
    found = stand_in.repositories[NAME]
    assert found.private
    assert found.commits == 1
    assert set(found.files) == OURS | {".gitattributes"}
    weights = (run / "adapter/adapter_model.safetensors").read_bytes()
    assert found.files["adapter_model.safetensors"] == weights
    assert json.loads(found.files["adapter_config.json"]) == json.loads(
        (run / "adapter/adapter_config.json").read_text()
    ) | {"base_model_name_or_path": "them/small-llava"}
    assert yaml.safe_load(found.files["config.yaml"]) == {
        "image_fit": "crop",
        "prompt": "vmcbench",
        "max_picture_tokens": None,
    }
    shown = capsys.readouterr().out
    assert f"pushed: {stand_in.url}/{NAME}/commit/" in shown
    assert f"{len(weights):,} bytes  adapter_model.safetensors" in shown


def test_nothing_of_this_machine_is_told(stand_in, run, made):
    push(run, "--export")
    found = stand_in.repositories[NAME]
    assert set(found.files) == OURS | EXPORT | {".gitattributes"}
    for path, content in found.files.items():
        for ours in (made, run):
            assert str(ours).encode() not in content, path
    card = found.files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "them/small-llava"
    assert f"load_adapter(base.model, '{NAME}')" in card
    assert "load_base('them/small-llava')" in card
    assert "dataset: shapes\n" in card
    exported = json.loads(found.files["export/adapter_config.json"])
    assert exported["base_model_name_or_path"] == "them/small-llava"
    assert exported["peft_type"] == "LORA"
    assert json.loads(found.files["export/export.json"])["model"] == "them/small-llava"


def test_a_second_push(stand_in, run, capsys):
    push(run, "--export")
    with pytest.raises(UserError, match=r"is on the hub already \(private\): --update adds"):
        push(run)
    assert stand_in.repositories[NAME].commits == 1
    stand_in.repositories[NAME].files["notes.txt"] = b"their own"
    push(run, "--update")
    found = stand_in.repositories[NAME]
    assert found.commits == 2
    assert set(found.files) == OURS | {".gitattributes", "notes.txt"}  # the export is not of these


def test_public_or_not(stand_in, run):
    push(run, "--public")
    found = stand_in.repositories[NAME]
    assert not found.private
    stand_in.repositories[NAME] = Repository(private=True)
    with pytest.raises(UserError, match="is there and private: make it public on the hub"):
        push(run, "--public")
    # One that somebody made by hand, and left empty.
    stand_in.repositories[NAME] = Repository(private=False)
    with pytest.raises(UserError, match="is there and public: say so with --public"):
        push(run)
    assert set(stand_in.repositories[NAME].files) == {".gitattributes"}
    push(run, "--public")
    assert set(stand_in.repositories[NAME].files) > OURS


def test_a_dry_run_asks_nothing(stand_in, run, capsys):
    push(run, "--export", "--dry-run")
    assert stand_in.asked == []
    shown = capsys.readouterr().out
    assert "export/export.json" in shown
    assert "nothing was sent to me/shapes-small" in shown


def test_what_the_hub_refuses(stand_in, run, monkeypatch):
    stand_in.refused = '"base_model" is not valid'
    with pytest.raises(UserError, match=r'refuses me/shapes-small: .* "base_model" is not valid'):
        push(run)
    stand_in.refused = ""
    stand_in.ignored = ("config.yaml",)
    with pytest.raises(UserError, match=r"did not take config.yaml: is there a .gitignore"):
        push(run, "--update")
    stand_in.ignored = ()
    with pytest.raises(UserError, match="does not let you write to them/x: log in"):
        command("push").main([str(run), "them/x", "--model", "them/small-llava"])
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"does not let you write to me/shapes-small: log in with"):
        push(run)


def test_a_hub_that_is_not_there(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached"):
        push(run)


@pytest.mark.parametrize(
    ("words", "spoil", "flags"),
    [
        ("has no README.md", lambda run: (run / "adapter/README.md").unlink(), []),
        (
            "is PEFT's form, not filled in",
            lambda run: (run / "adapter/README.md").write_text("[More Information Needed]"),
            [],
        ),
        (
            "is damaged",
            lambda run: (run / "adapter/adapter_model.safetensors").write_bytes(b"x"),
            [],
        ),
        ("is damaged", lambda run: (run / "adapter/adapter_config.json").write_text("{"), []),
        ("there is no export at", lambda run: shutil.rmtree(run / "export"), ["--export"]),
        (
            "is older than the adapter",
            lambda run: os.utime(run / "export/adapter_model.safetensors", (1, 1)),
            ["--export"],
        ),
        ("there is no export at /nowhere", lambda run: None, ["--export", "/nowhere"]),
    ],
)
def test_nothing_goes_that_is_not_sound(stand_in, run, words, spoil, flags):
    spoil(run)
    with pytest.raises(UserError, match=words):
        push(run, *flags)
    assert stand_in.asked == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([NAME], "names its base '/.*/base', which nobody else can load: say with --model"),
        ([NAME, "--model", "/my/base"], "--model '/my/base' is no id of the hub"),
        (["shapes-small"], "'shapes-small' names no repository: give USER/NAME"),
        (["a/b/c"], "'a/b/c' names no repository"),
        (["me/../x"], "names no repository"),
        (["https://huggingface.co/me/x"], "names no repository"),
    ],
)
def test_names(stand_in, run, flags, words):
    with pytest.raises(UserError, match=words):
        command("push").main([str(run), *flags])
    assert stand_in.asked == []


def test_a_run_that_is_not_there():
    with pytest.raises(UserError, match="there is no run at /nowhere"):
        command("push").main(["/nowhere", NAME])


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("prompt: [vmcbench]", "prompt must be"),
        ("prompt: theirs", "prompt"),
        ("image_fit: 3", "image_fit"),
        ("max_picture_tokens: -1", "max_picture_tokens"),
        ("max_picture_tokens: .nan", "max_picture_tokens"),
        ("prompt: 2024-99-99", "not readable YAML"),
        ("[" * 5000, "not readable YAML"),
        ("- prompt", "must hold `key: value` lines"),
        ("!!python/object/apply:os.system [true]", "not readable YAML"),
    ],
)
def test_settings_from_the_hub_are_looked_over(tmp_path, written, words):
    (tmp_path / "config.yaml").write_text(written)
    with pytest.raises(UserError, match=words):
        settings_of(tmp_path)


def test_no_more_is_taken_from_them(tmp_path):
    (tmp_path / "config.yaml").write_text("prompt: paper\ndataset: /etc\noutput: /tmp/x\n")
    assert settings_of(tmp_path) == {"prompt": "paper"}


TAKEN = """
import sys, torch
import vlmoe
from peft import AutoPeftModel, PeftModel
from transformers import AutoModelForImageTextToText

base, run, name = sys.argv[1:]
theirs = AutoPeftModel.from_pretrained(name)
assert theirs.peft_config["default"].peft_type == "MOE_LORA"

def on_base(*args, **more):
    model = AutoModelForImageTextToText.from_pretrained(base)
    return PeftModel.from_pretrained(model, *args, **more)

ours = on_base(run + "/adapter")
weights, same = ours.state_dict(), theirs.state_dict()
assert weights.keys() == same.keys() and any("moe_lora" in key for key in weights)
assert all(torch.equal(weights[key], same[key]) for key in weights)

from vlmoe.adapter.load import find_adapter
from vlmoe.train.record.finished import settings_of
assert settings_of(find_adapter(name))["prompt"] == "vmcbench"

plain = on_base(name, subfolder="export")
assert plain.peft_config["default"].peft_type == "LORA"
print("taken")
"""


@pytest.mark.slow
def test_whoever_takes_it_has_the_same(stand_in, run, made, tmp_path):
    """The base comes from the stand-in, too: AutoPeftModel finds it by the adapter's settings."""
    push(run, "--export", "--public")
    base = stand_in.repositories["them/small-llava"] = Repository(private=False)
    for file in (made / "base").iterdir():
        base.files[file.name] = file.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", TAKEN, str(made / "base"), str(run), NAME],
        env=os.environ | {"HF_ENDPOINT": stand_in.url, "HF_HOME": str(tmp_path / "hub"),
                          "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("taken"), done.stderr
