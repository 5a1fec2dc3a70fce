"""A data set from the hub, by the real client from a local server; or one clear error."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.parquet_source import scienceqa_row, vmcbench_row, write_scienceqa, write_vmcbench
from vlmoe.data.dataset import load_split
from vlmoe.data_prep import hub
from vlmoe.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of a data set takes."""

    root: Path  # holds OWNER/NAME/...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if (
            parts[:2] == ["api", "datasets"]
            and (folder := self.root / "/".join(parts[2:4])).is_dir()
        ):
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [str(file.relative_to(folder)) for file in files]
            if parts[4:5] == ["tree"]:
                entries = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest(file)}
                    for name, file in zip(names, files, strict=True)
                ]
                return self.answer(json.dumps(entries).encode())
            about = {
                "_id": "1",
                "id": "/".join(parts[2:4]),
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in names],
            }
            return self.answer(json.dumps(about).encode())
        if parts[:1] == ["datasets"] and parts[3:4] == ["resolve"]:
            file = self.root / "/".join(parts[1:3]) / "/".join(parts[5:])
            if file.is_file():
                return self.answer(file.read_bytes(), ETag=f'"{digest(file)}"')
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that is served as a hub, and its address."""
    handler = type("Handler", (Hub,), {"root": tmp_path / "hub"})
    (tmp_path / "hub").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield tmp_path / "hub", f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because the client reads its settings when it is imported."""
    proxies = {key: "" for key in os.environ if key.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, str(ROOT / f"data_prep/{name}.py"), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | proxies | environment,
        check=False,
    )


def test_by_hub_id(tmp_path: Path, server: tuple[Path, str]) -> None:
    root, address = server
    dev = [vmcbench_row(i) for i in range(5)]
    test = [vmcbench_row(i, answer="") for i in range(5, 8)]
    write_vmcbench(root / "suyc21" / "VMCBench", dev, test)
    (root / "suyc21" / "VMCBench" / "README.md").write_text("not wanted")
    write_scienceqa(
        root / "derek-thomas" / "ScienceQA", {"train": [scienceqa_row(i) for i in range(4)]}
    )
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    for name, source in (("vmcbench", "suyc21/VMCBench"), ("scienceqa", "derek-thomas/ScienceQA")):
        done = run(name, "--source", source, "--out", str(tmp_path / name), **online)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert manifest["source"] == f"{source}@{COMMIT}"
    assert len(load_split(tmp_path / "vmcbench", "train")) == 5
    assert len(load_split(tmp_path / "vmcbench", "unlabelled")) == 3
    assert len(load_split(tmp_path / "scienceqa", "train")) == 4
    # What was downloaded once is found again without network.
    offline = online | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    again = ("--source", "suyc21/VMCBench", "--out", str(tmp_path / "again"))
    done = run("vmcbench", *again, **offline)
    assert done.returncode == 0, done.stderr
    done = run("vmcbench", "--source", "no/such", "--out", str(tmp_path / "none"), **online)
    assert done.returncode == 2
    assert "cannot get the data set 'no/such' from the hub" in done.stderr


def test_without_network(tmp_path: Path) -> None:
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0"}):
        nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
        argv = ("--source", "suyc21/VMCBench", "--out", str(tmp_path / "out"))
        done = run("vmcbench", *argv, **(nowhere | offline))
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "hf download suyc21/VMCBench --repo-type dataset --local-dir DIR" in line
        assert not (tmp_path / "out").exists()


def test_neither_a_path_nor_a_hub_id(tmp_path: Path) -> None:
    for source in (str(tmp_path / "none"), "none", "a/b/c", "a b/c"):
        with pytest.raises(UserError, match="no such file or folder"):
            hub.fetch(source)
    assert hub.fetch(str(tmp_path)) == (tmp_path, str(tmp_path))
