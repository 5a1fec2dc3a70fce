"""The command line: mistakes are told before anything is loaded, and it ends in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlmoe.commands.serve import main
from vlmoe.demo import flags
from vlmoe.errors import UserError
from vlmoe.serve import serving

ROOT = Path(__file__).parents[2]
GOOD = "0123456789abcdef"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--adapter", "/nowhere/run"], "there is no adapter at /nowhere/run"),
        (["--adapter", "none", "--queue", "0", "--time-limit", "-1"], "--queue must be above 0"),
        (["--adapter", "none", "--max-waiting-mb", "20"], "--max-waiting-mb must be 30 at least"),
        (["--adapter", "none", "--max-upload-mb", "1000"], "--max-waiting-mb must be 2670 at"),
        (["--adapter", "none", "--allowed-host", "http://x"], "'http://x' is no host"),
        (["--adapter", "none", "--read-timeout", "nan"], "--read-timeout must be above 0"),
        (["--adapter", "none", "--port", "99999"], "--port must lie between 1 and 65535"),
        (["--adapter", "none", "--device", "cuda:99"], "no device"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(given, words):
    def made():
        args = serving.parse(given, None)
        return flags.make_engine(args, serving.limits_of(args))

    with pytest.raises(UserError, match=words):
        made()


def test_every_flag_reaches_its_limit():
    args = serving.parse(
        [
            *("--adapter", "none", "--queue", "3", "--time-limit", "7", "--max-new-tokens", "9"),
            *("--max-upload-mb", "4", "--max-megapixels", "5"),
        ],
        None,
    )
    limits = serving.limits_of(args)
    assert (limits.waiting, limits.seconds, limits.new_tokens) == (3, 7, 9)
    assert (limits.upload_mb, limits.megapixels) == (4, 5)
    assert serving.request_mb(args) == 7  # 4 MB are 5.4 in base64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "--api-key-file: cannot read the key file"),
        ("", "the first line of .* is empty"),
        (f"\n{GOOD}\n", "the first line of .* is empty"),
        ("short", "16 characters or more"),
        (f"{GOOD} {GOOD}", "without spaces"),
        ("\u00e9" * 20, "of ASCII"),
    ],
)
def test_keys_that_are_none(tmp_path, monkeypatch, content, words):
    monkeypatch.setenv(serving.KEY, GOOD)  # the flag counts
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words):
        serving.read_key(str(file))


def test_keys(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(f"{GOOD}\nsecond line\n", encoding="utf-8-sig")
    monkeypatch.delenv(serving.KEY, raising=False)
    assert serving.read_key(None) is None
    assert serving.read_key(str(file)) == GOOD
    monkeypatch.setenv(serving.KEY, GOOD[::-1])
    assert serving.read_key(None) == GOOD[::-1]
    assert serving.read_key(str(file)) == GOOD
    for wrong in ("", "short"):  # an empty one is no way to ask for no key
        monkeypatch.setenv(serving.KEY, wrong)
        with pytest.raises(UserError, match=f"\\${serving.KEY}: a key has 16"):
            serving.read_key(None)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("vlmoe.commands.serve.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"starlette and uvicorn: pip install 'vlmoe\[serve\]'"):
        main(["--adapter", "none", "--model", "tiny"])


def test_what_cannot_be_loaded_ends_it(capsys):
    """The port is open by then; it is closed."""
    with pytest.raises(UserError, match="no model directory at /nowhere/model"):
        main(["--adapter", "none", "--model", "/nowhere/model", "--device", "cpu"])
    assert "vlmoe serve on http://127.0.0.1:" in capsys.readouterr().out


WITHOUT_GRADIO = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
sys.modules["gradio"] = None
from vlmoe.commands import main
main()
"""


def test_it_needs_no_gradio_and_ends_when_it_is_interrupted(tmp_path):
    flags = ["--adapter", "none", "--model", "tiny", "--device", "cpu", "--host", "0.0.0.0"]
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_GRADIO, "serve", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        lines = []
        while not lines or not lines[-1].startswith("Ready: "):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        assert lines[0].startswith("warning: whoever reaches the address can use the model")
        assert lines[-1] == "Ready: tiny on CPU, float32; models: base\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            rest = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert time.monotonic() - begun < 15
