"""Runs as their files tell them: on a screen, on a page, in a list; whatever is in those files."""

from __future__ import annotations

import json
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.scripts.conftest import command
from vlmoe.errors import UserError
from vlmoe.train.record.lock import RunLock
from vlmoe.watch import look as looking
from vlmoe.watch.figures import figures, going_on
from vlmoe.watch.look import Seen, look, runs_below
from vlmoe.watch.page import POINTS, page, thinned
from vlmoe.watch.screen import BARS, listing, screen, sparkline

SETTINGS = "model: tiny\ndataset: shapes\noptim: grsgd\nlr: 0.03\nmax_steps: 40\nbatch_size: 10\n"
NASTY = "<script>alert(1)</script>\x1b[2J\"'&"


def row(step: int, **more) -> dict:
    tower = {"entropy": 0.9, "max_share": 0.2, "idle": 1, "experts": 8}
    told = {"loss": 2.0 / step, "lr": 0.03, "gate_lr": 0.001, "questions_per_second": 20.0}
    return {"step": step, **told, "routing": {"vision": tower, "language": tower}, **more}


def make(folder: Path, *rows, settings: str = SETTINGS, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines))
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    accuracies = {10: 0.5, 20: 0.75, 30: 0.7}
    validations = [{"step": at, "validation_accuracy": value} for at, value in accuracies.items()]
    return make(tmp_path / "a", *map(row, (10, 20, 30)), *validations)


def test_the_figures_of_a_run(run):
    (run / "checkpoints" / "step-30").mkdir(parents=True)
    told = figures(look(run))
    assert told["state"] == "stopped"
    assert told["step"] == "30 of 40"
    assert told["loss"] == "0.0667"
    assert (told["validation"], told["best validation"]) == ("70.0%", "75.0% (step 20)")
    assert told["routing, vision"] == "entropy 0.900, largest share 0.200, 1 of 8 idle"
    assert "left" not in told
    assert going_on(look(run)) == f"vlmoe train --output {run} --resume"


def test_a_run_that_goes_on_and_one_that_has_ended(run):
    lock = RunLock(run)
    seen = look(run)
    assert (seen.state, seen.seconds_left) == ("running", 10 * 10 / 20)
    assert figures(seen)["left"] == "5 s"
    lock.release()
    assert look(run).state == "stopped"
    (run / "metrics.json").write_text('{"accuracy": 0.9, "base": {"accuracy": 0.6}}')
    seen = look(run)
    told = figures(seen)
    assert (told["state"], told["test accuracy"], told["base's"]) == ("done", "90.0%", "60.0%")
    assert going_on(seen) == f"vlmoe evaluate --adapter {run} --dataset shapes"


@pytest.mark.parametrize(
    "line",
    ["{", "", "[1]", "3", '{"loss": 1}', '{"step": "x"}', '{"step": null}', '{"step": true}',
     '{"step": NaN}', '{"step": 1e999}', '{"step": -1}', '{"step": ' + "9" * 4000 + "}",
     "[" * 100_000, "\0\0\0", '{"step": 1'],
)  # fmt: skip
def test_broken_lines_are_counted_and_harm_nothing(tmp_path, line):
    seen = look(make(tmp_path / "a", row(1), line, row(2)))
    assert [one["step"] for one in seen.rows] == [1, 2]
    assert seen.broken == bool(line)


def test_values_that_are_none(tmp_path):
    odd = {"loss": None, "lr": "x", "gate_lr": [1], "routing": {"vision": 3}, "left_out": True}
    huge = '{"step": 3, "loss": 1e300, "lr": NaN, "questions_per_second": Infinity}'
    seen = look(make(tmp_path / "a", row(1), row(2, **odd), huge))
    assert seen.series("loss") == [(1, 2.0)]
    assert seen.series("lr") == [(1, 0.03)]
    assert seen.series("routing", "vision", "entropy") == [(1, 0.9)]
    assert screen([seen])
    assert page([seen], None)


def test_a_line_that_is_being_written(run):
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')
        file.flush()
        assert (look(run).step, look(run).broken) == (30, 0)
        file.write('ss": 1}')
        file.flush()
        assert look(run).step == 40


def test_of_a_log_without_end_the_end_is_read(run, monkeypatch):
    last = (run / "log.jsonl").read_bytes()[-150:]
    monkeypatch.setattr(looking, "MOST", len(last))
    seen = look(run)
    assert (seen.rows[-1]["step"], seen.broken) == (30, 0)
    assert 0 < len(seen.rows) < 6


@pytest.mark.parametrize(
    "settings", ["", "[", "- 1", "max_steps: many", "a: &a [*a]", "lr: {x: 1}", "max_steps: 1e400"]
)
def test_settings_that_are_none(tmp_path, settings):
    seen = look(make(tmp_path / "a", row(1), settings=settings, metrics="[" * 100_000))
    assert (seen.step, seen.metrics) == (1, {})
    assert screen([seen])
    assert listing([seen])
    assert page([seen], 2.0)


class Parts(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_nothing_of_a_runs_files_is_markup_or_moves_the_cursor(tmp_path):
    settings = (
        f"model: {json.dumps(NASTY)}\ndataset: {json.dumps(NASTY)}\noptim: {json.dumps(NASTY)}"
    )
    folder = make(
        tmp_path / "<b>\x1b[31m'\"", row(1, skipped_steps=NASTY), settings=settings,
        metrics=json.dumps({"accuracy": NASTY}),
    )  # fmt: skip
    seen = look(folder)
    parts = Parts(page([seen, seen], 2.0, NASTY))
    assert parts.tags.isdisjoint({"script", "b", "img", "iframe", "link"})
    assert sum(word.startswith("<b>") for word in parts.words) >= 2  # as text
    for text in (screen([seen, seen], 60), listing([seen])):
        assert "\x1b" not in text


def test_the_page_loads_itself_anew_while_a_run_goes_on(run):
    assert '<meta http-equiv="refresh" content="5">' in page([look(run)], 5)
    still = page([look(run)], None)
    assert "refresh" not in still
    assert "default-src 'none'" in still
    assert still.count("<polyline") == 6  # loss, validation, rate, speed and two towers


def test_runs_side_by_side(run, tmp_path):
    other = make(tmp_path / "b", row(7), settings="epochs: 2\n")
    lines = screen([look(run), look(other)], 120).splitlines()
    assert lines[0].split() == ["a", "b"]
    (steps,) = [line for line in lines if line.startswith("step")]
    assert steps.split() == ["step", "30", "of", "40", "7"]  # epochs do not tell how many
    assert max(map(len, lines)) <= 120
    narrow = screen([look(run), look(other)], 50)
    assert max(map(len, narrow.splitlines())) <= 50
    assert narrow.count("state") == 2  # below each other


def test_curves_are_as_long_as_there_is_room():
    assert sparkline([], 5) == ""
    assert sparkline([1.0, 1.0], 5) == BARS[0] * 2
    assert sparkline([float(at) for at in range(80)], 8) == BARS
    assert sparkline([3.0, 1.0, 2.0], 9) == "█▁" + BARS[round(3.5)]
    assert thinned([(1, 4.0)]) == [(1, 4.0)]
    many = thinned([(at, float(at)) for at in range(10 * POINTS)])
    assert (len(many), many[0]) == (POINTS, (4.5, 4.5))


def test_the_list_of_runs(run, tmp_path, capsys):
    make(tmp_path / "study" / "x" / "b", row(3), metrics='{"accuracy": 0.25}')
    (tmp_path / "empty").mkdir()
    make(run / "evaluate" / "no run of its own", row(1))
    command("runs").main([str(tmp_path)])
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [str(run), str(tmp_path / "study/x/b")]
    assert "tiny, shapes, grsgd, lr 0.03" in blocks[0]
    assert "test accuracy 25.0%" in blocks[1]
    assert len(list(runs_below(tmp_path))) == 2
    with pytest.raises(UserError, match="no run in"):
        command("runs").main([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no folder"):
        command("runs").main([str(tmp_path / "nothing")])


def test_the_command_ends_with_the_runs(run, tmp_path, capsys, monkeypatch):
    """It shows a run again as long as that goes on, and looks only."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    command("watch").main([str(run)])
    assert "30 of 40" in capsys.readouterr().out
    states = iter(["running", "running", "stopped"])

    def seen(path: Path) -> Seen:
        found = look(path)
        return Seen(**{**vars(found), "state": next(states)})

    watch = command("watch")
    monkeypatch.setattr(watch, "look", seen)
    pauses: list[float] = []
    monkeypatch.setattr(watch, "time", SimpleNamespace(**{**vars(time), "sleep": pauses.append}))
    watch.main([str(run), "--html", str(tmp_path / "page.html"), "--every", "3"])
    assert pauses == [3.0, 3.0]
    assert "refresh" not in (tmp_path / "page.html").read_text()
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.undo()
    with pytest.raises(UserError, match="no run at"):
        watch.main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="--every must lie between"):
        watch.main([str(run), "--every", "nan"])
