"""What goes wrong in hours of training, made to go wrong: each ends as the docs say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmoe.train.loop
from tests.scripts.test_train_and_evaluate import adapter_digest, losses
from tests.visual7w_source import write_source
from vlmoe.data.dataset import load_split
from vlmoe.data.mix import load_mixture
from vlmoe.data_prep import visual7w
from vlmoe.errors import Diverged, UserError
from vlmoe.optim.riemannian import RiemannianSGD
from vlmoe.train.record.checkpoint import damage, found, write_manifest


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").open()]


@pytest.fixture
def whole(undisturbed):
    return adapter_digest(undisturbed), losses(undisturbed)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def flip(path: Path) -> None:
    """One bit, deep in the numbers: the file still loads."""
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": ("optimizer.safetensors", truncate, r"optimizer\.safetensors has \d+ bytes"),
    "flipped bit": ("adapter/adapter_model.safetensors", flip, "is not what was written"),
    "lost file": ("random.safetensors", Path.unlink, "random.safetensors is missing"),
    "no manifest": ("manifest.json", Path.unlink, "it has no manifest.json"),
    "broken manifest": ("manifest.json", truncate, "its manifest.json cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_checkpoint(undisturbed, whole, train, tmp_path, kind, capsys):
    """It is named, and the one before it leads to the same end."""
    name, harm, message = DAMAGES[kind]
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    harm(run / "checkpoints" / "step-6" / name)
    with pytest.raises(UserError, match=f"step-6 is damaged: .*{message}.*whole ones: step-3"):
        train("--resume", "run/checkpoints/step-6")
    train("--resume", "run")
    out = capsys.readouterr().out
    assert "step-6 is damaged" in out
    assert "deleting run/checkpoints/step-6" in out
    assert "resumed from run/checkpoints/step-3: 3 of 6 steps are done" in out
    assert (adapter_digest(run), losses(run)) == whole
    assert damage(run / "checkpoints" / "step-6") is None  # made anew


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(train, small, tmp_path, monkeypatch):
    """Else a power cut could leave the name of a checkpoint, and less than that in it."""
    events: list[tuple[str, str]] = []
    sync, rename = os.fsync, Path.rename

    def noted_sync(handle):
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def noted_rename(path, target):
        if Path(target).name == "step-1":
            events.append(("rename", str(path)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    train(*small, "--output", "run", "--max-hours", 1e-9)
    step = tmp_path / "run" / "checkpoints" / "step-1"
    (at,) = (at for at, (kind, _) in enumerate(events) if kind == "rename")
    building = tmp_path / events[at][1]
    before = {path for kind, path in events[:at] if kind == "sync"}
    inside = [path.relative_to(step) for path in step.rglob("*")]
    assert len(inside) >= 7
    assert {str(building), *(str(building / path) for path in inside)} <= before
    assert ("sync", str(step.parent)) in events[at:]
    assert str(tmp_path / "run") in before  # where the folder of checkpoints has its name


def test_all_checkpoints_damaged(train, undisturbed, tmp_path):
    for path in found(shutil.copytree(undisturbed, tmp_path / "run")).values():
        flip(path / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"(?s)step-6 is damaged.*step-3 is damaged.*start anew"):
        train("--resume", "run")


def test_other_data_is_not_resumed_with(train, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    state = run / "checkpoints" / "step-6" / "state.json"
    text = state.read_text().replace('"questions": ', '"questions": 9')
    state.write_text(text)
    (state.parent / "manifest.json").unlink()
    write_manifest(state.parent)
    with pytest.raises(UserError, match="the training data has changed since"):
        train("--resume", "run")


@pytest.fixture
def disk(tmp_path):
    """``disk(options)`` mounts a file system in memory, or mounts it anew."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if os.path.ismount(folder) else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if shutil.which("mount") is None:
            pytest.skip("no mount command")
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting needs root")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk(undisturbed, whole, train, small, disk):
    """The checkpoints that fit are whole; with more room the run goes on to the same end."""
    files = (undisturbed / "checkpoints" / "step-6").rglob("*")
    pages = sum(path.stat().st_size // 4096 + 1 for path in files)
    run = disk(f"size={3 * 4 * pages + 100}k") / "run"
    with pytest.raises(UserError, match="No space left on device") as caught:
        train(*small, "--output", run, "--save-steps", 1, "--eval-steps", 0)
    last = next(iter(found(run)))
    assert f"the last good checkpoint is step-{last}; make room" in str(caught.value)
    assert all(damage(path) is None for path in found(run).values())
    disk("size=20m")
    train("--resume", run)
    assert (adapter_digest(run), losses(run)) == whole


def test_read_only_folder(train, small, disk):
    folder = disk("size=20m,ro")
    with pytest.raises(UserError, match=f"cannot write to {folder}"):
        train(*small, "--output", folder / "run")


def without_a_picture(folder: Path, split: str) -> Path:
    """A dataset of which a picture was removed after it had been prepared."""
    write_source(folder / "raw", images=12)
    visual7w.prepare(folder / "raw", folder / "broken")
    key = load_split(folder / "broken", split).image_key(0)
    assert key is not None
    (folder / "broken" / "images" / key).unlink()
    return folder / "broken"


@pytest.fixture
def broken_dataset(tmp_path) -> Path:
    return without_a_picture(tmp_path, "train")


def test_removed_picture(train, small, tmp_path, broken_dataset, capsys):
    flags = [*small, "--dataset", broken_dataset, "--epochs", 2, "--output", "run"]
    flags[flags.index("--max-steps") : flags.index("--max-steps") + 2] = []
    train(*flags, "--max-bad-images", 0.5)
    out = capsys.readouterr().out
    left_out = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").open()]
    assert left_out
    assert {row["dataset"] for row in left_out} == {"broken"}
    for row in left_out:
        assert "no such file" in row["reason"]
        assert row["id"] in row["reason"]
        assert out.count(row["reason"]) == 1  # though it is met in every epoch
    last = [row for row in rows(tmp_path / "run") if "loss" in row][-1]
    assert last["left_out"] == len(left_out)


def test_a_piece_of_removed_pictures_weighs_nothing(train, small, tmp_path, broken_dataset):
    """One question in a piece or four: the same losses and routing."""
    flags = [*small, "--dataset", broken_dataset, "--dropout", 0, "--max-bad-images", 0.5]
    for accum in (1, 4):
        train(*flags, "--grad-accum", accum, "--output", f"run{accum}")
    cut, whole = rows(tmp_path / "run4"), rows(tmp_path / "run1")
    assert cut[-2]["left_out"] == whole[-2]["left_out"] == 3
    assert losses(tmp_path / "run4") == pytest.approx(losses(tmp_path / "run1"), rel=1e-4)
    assert cut[0]["routing"] == {
        tower: pytest.approx(values, abs=1e-3) for tower, values in whole[0]["routing"].items()
    }


def test_too_many_removed_pictures(train, small, broken_dataset):
    with pytest.raises(
        UserError, match=r"more than --max-bad-images 0 of them: see skipped\.jsonl"
    ):
        train(*small, "--dataset", broken_dataset, "--max-bad-images", 0, "--max-steps", 20)


def test_removed_validation_picture(train, small, tmp_path, capsys):
    broken = without_a_picture(tmp_path, "validation")
    train(*small, "--dataset", broken, "--output", "run")
    out = capsys.readouterr().out
    assert "questions could not be answered, which is wrong:" in out
    assert "no such file" in out
    validated = [row for row in rows(tmp_path / "run") if "validation_accuracy" in row]
    assert [row["step"] for row in validated] == [3, 6]
    whole = len(load_mixture({"broken": broken}, "validation"))
    assert all(row["validation_n"] == whole > row["unanswered"] > 0 for row in validated)


def test_removed_test_picture(train, evaluate, small, tmp_path, capsys):
    broken = without_a_picture(tmp_path, "test")
    train(*small, "--dataset", broken, "--output", "run", "--max-steps", 1, "--eval-steps", 0)
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert 0 < numbers["unanswered"] < numbers["n"]
    assert numbers["base"]["unanswered"] == numbers["unanswered"]
    out = capsys.readouterr().out
    assert f"{numbers['unanswered']} of {numbers['n']} questions could not be answered" in out
    evaluate("--adapter", "run", "--dataset", broken)
    (report,) = (tmp_path / "run" / "evaluate").iterdir()
    again = json.loads((report / "metrics.json").read_text())
    assert (again["accuracy"], again["n"]) == (numbers["accuracy"], numbers["n"])
    assert again["unanswered"] == numbers["unanswered"]
    out = capsys.readouterr().out
    assert "run: " in out
    assert out.splitlines()[-1].startswith("accuracy ")
    evaluate("--compare", "run", report)
    assert "not answered, which is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("eval_steps", [0, 1])
@pytest.mark.parametrize("lr", [1e30, 3e38])
def test_a_last_step_that_diverged(train, small, tmp_path, monkeypatch, lr, eval_steps):
    """Nothing is trained after it that could show it by its loss."""
    for module in ("vlmoe.train.settings.kinds", "vlmoe.optim.options"):  # which refuse such a rate
        monkeypatch.setattr(f"{module}.LARGEST", 1e39)
    with pytest.raises(Diverged, match=r"not finite .*lower --lr") as caught:
        train(*small, "--lr", lr, "--optim", "grsgd", "--output", "run",
              "--max-steps", 1, "--eval-steps", eval_steps, "--save-steps", 0)  # fmt: skip
    assert caught.value.exit_code == 2
    run = tmp_path / "run"
    # Finite weights can be so large that no logit is; else they are not saved, and named.
    assert (run / "adapter").exists() == (lr == 1e30 and not eval_steps)
    assert ("moe_lora_" in str(caught.value)) == (lr == 3e38)
    assert not (run / "metrics.json").exists()
    assert not (run / "predictions.jsonl").exists()
    for file in run.glob("*.json*"):
        assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", file.read_text()))


def test_no_checkpoint_of_weights_that_are_no_numbers(train, small, tmp_path, monkeypatch):
    """Those before it are kept, and named."""
    step, calls = RiemannianSGD.step, 0

    def spoil(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        found = step(self, *args, **kwargs)
        if calls == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("inf")
        return found

    monkeypatch.setattr(RiemannianSGD, "step", spoil)
    with pytest.raises(Diverged, match=r"moe_lora_A.*the last good checkpoint is step-3"):
        train(*small, "--output", "run", "--eval-steps", 0)
    assert list(found(tmp_path / "run")) == [3]


def test_an_adapter_with_one_infinite_number(undisturbed, evaluate, small, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    file = run / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("inf")
    save_file(tensors, file)
    with pytest.raises(UserError, match=name.removeprefix("base_model.model.").replace(".", r"\.")):
        evaluate("--adapter", run, "--dataset", small[3])
    assert not (run / "evaluate").exists()


def break_batches(monkeypatch, broken) -> None:
    """Put a number that is none into the pixels of some batches, counted from 1."""
    to, calls = vlmoe.train.loop._to, 0

    def spoil(batch, device):
        nonlocal calls
        calls += 1
        if calls in broken:
            batch["pixel_values"][0, 0, 0, 0] = float("nan")
        return to(batch, device)

    monkeypatch.setattr(vlmoe.train.loop, "_to", spoil)


def test_a_bad_batch_is_skipped(train, small, tmp_path, monkeypatch, capsys):
    break_batches(monkeypatch, {1, 4})
    train(*small, "--output", "run", "--max-bad-steps", 2)
    assert "step 4 is skipped: the loss is nan" in capsys.readouterr().out
    log = rows(tmp_path / "run")
    assert [row["step"] for row in log if "skipped" in row] == [1, 4]
    steps = [row for row in log if "loss" in row]
    assert [row["step"] for row in steps] == [2, 3, 5, 6]
    assert [row["skipped_steps"] for row in steps] == [1, 1, 2, 2]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in steps)


def test_bad_batches_in_a_row_end_the_run(train, small, tmp_path, monkeypatch):
    break_batches(monkeypatch, {5, 6, 7, 8})
    with pytest.raises(UserError, match="the loss is nan at step 8, and 4 steps in a row"):
        train(*small, "--output", "run", "--max-bad-steps", 4, "--max-steps", 9)
    assert list(found(tmp_path / "run")) == [3]  # none of step 6, in the middle of it


def test_skipped_steps_are_resumed_with(train, small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        break_batches(patch, {2})
        train(*small, "--output", "whole")
    with monkeypatch.context() as patch:
        break_batches(patch, {2})
        train(*small, "--output", "run", "--save-steps", 2)
    shutil.rmtree(tmp_path / "run" / "adapter")
    train("--resume", "run/checkpoints/step-4")
    assert adapter_digest(tmp_path / "run") == adapter_digest(tmp_path / "whole")
    assert rows(tmp_path / "run")[-2]["skipped_steps"] == 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ([], ["--grad-accum 4", "--gradient-checkpointing", "--quantize 4bit"]),
        (
            ["--grad-accum", "4", "--gradient-checkpointing"],
            ["--quantize 4bit", "--experts 2 or --rank 1", "accelerate/fsdp2"],
        ),
    ],
)
def test_out_of_memory(train, small, monkeypatch, flags, named):
    def too_much(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(vlmoe.train.loop, "answer_loss", too_much)
    with pytest.raises(UserError, match=r"Tried to allocate 2\.00 GiB") as caught:
        train(*small, *flags)
    text = str(caught.value)
    places = [text.index(name) for name in named]
    assert places == sorted(places)
    assert text.count(";") == 2  # three of them
