"""A stand-in for the Hugging Face hub: as much of it as a push and a load ask for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_of_the_stand_in"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b""})
    commits: int = 0

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


@dataclass
class Hub:
    """What it holds, and how it is to misbehave.

    Attributes:
        ignored: files that it drops in silence, as one with a .gitignore does.
        refused: what it finds wrong with cards.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    refused: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def hub() -> Iterator[Hub]:
    """It answers as long as the block lasts."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    @property
    def may(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def answer(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str, message: str = "") -> None:
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def parts(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def seen(self, name: str) -> Repository | None:
        """The repository, if whoever asks may see it."""
        found = self.hub.repositories.get(name)
        return found if found and (self.may or not found.private) else None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        match self.parts():
            case ["api", "validate-yaml"]:
                wrong = [{"message": self.hub.refused}] if self.hub.refused else []
                self.answer({"errors": wrong, "warnings": []}, 400 if wrong else 200)
            case _ if not self.may:
                self.fail(401, "", "Invalid username or password.")
            case ["api", "repos", "create"]:
                given = json.loads(body)
                name = f"{given['organization']}/{given['name']}"
                if given["organization"] != "me":
                    self.fail(403, "", "You don't have the rights to create a model there")
                    return
                self.hub.repositories[name] = Repository(_private(given))
                self.answer({"url": f"{self.hub.url}/{name}", "name": name})
            case ["api", "models", user, name, "preupload", _]:
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "regular",
                        "shouldIgnore": file["path"] in self.hub.ignored,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            case ["api", "models", user, name, "commit", _]:
                found = self.hub.repositories[f"{user}/{name}"]
                for line in body.decode().splitlines():
                    change = json.loads(line)
                    value = change["value"]
                    if (
                        change["key"] == "header"
                        and value.get("parentCommit", found.sha) != found.sha
                    ):
                        self.fail(412, "", "A commit has happened since.")
                        return
                    if change["key"] == "file":
                        found.files[value["path"]] = base64.b64decode(value["content"])
                    if change["key"] == "deletedFile":
                        del found.files[value["path"]]
                found.commits += 1
                url = f"{self.hub.url}/{user}/{name}/commit/{found.sha}"
                self.answer({"commitUrl": url, "commitOid": found.sha})
            case _:
                self.fail(404, "", f"the stand-in has no {self.path}")

    def do_GET(self) -> None:
        match self.parts():
            case ["api", "models", user, name, "tree", *_] if found := self.seen(f"{user}/{name}"):
                self.answer([
                    {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}
                    for path, content in found.files.items()
                ])  # fmt: skip
            case ["api", "models", user, name, *_] if found := self.seen(f"{user}/{name}"):
                self.answer({
                    "_id": "0", "id": f"{user}/{name}", "modelId": f"{user}/{name}",
                    "sha": found.sha, "private": found.private,
                    "siblings": [{"rfilename": path} for path in found.files],
                })  # fmt: skip
            case [user, name, "resolve", _, *path] if found := self.seen(f"{user}/{name}"):
                content = found.files.get("/".join(path))
                if content is None:
                    self.fail(404, "EntryNotFound")
                    return
                self.answer(content, ETag=f'"{_digest(content)}"', X_Repo_Commit=found.sha)
            case _:
                self.fail(404 if self.may else 401, "RepoNotFound", "Repository Not Found")

    do_HEAD = do_GET


def _private(given: dict) -> bool:
    """As versions of the hub's library say it."""
    return given.get("visibility") == "private" or bool(given.get("private"))


def _digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
