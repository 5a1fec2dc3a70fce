"""What attackers send, as raw HTTP: nothing is read, touched or told that is not theirs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.demo.conftest import NEEDS, Demo
from tests.demo.test_limits import jpeg

httpx = pytest.importorskip("httpx", reason=NEEDS)

QUESTION, OPTIONS = "What colour?", ["Red.", "Blue."]
FILE = {"_type": "gradio.FileData"}


class Web:
    """One visitor: a browser with cookies (``cookies=True``), or a program without."""

    def __init__(self, url: str, cookies: bool = True, **more):
        self.web = httpx.Client(base_url=url, timeout=120, **more)
        self.keeps = cookies
        if cookies:
            self.web.get("/")

    def post(self, path: str, **more):
        answer = self.web.post(f"/gradio_api/{path}", **more)
        if not self.keeps:
            self.web.cookies.clear()
        return answer

    def upload(self, content: bytes | None = None, name: str = "scene.jpg") -> str:
        files = {"files": (name, content or jpeg(), "image/jpeg")}
        answer = self.post("upload", files=files)
        assert answer.status_code == 200, answer.text
        return answer.json()[0]

    def call(self, name: str, data: list, session: str | None = None) -> str:
        """The last event of a call, or the refusal."""
        body = {"data": data} | ({"session_hash": session} if session else {})
        begun = self.post(f"call/{name}", json=body)
        if begun.status_code != 200:
            return begun.text
        number = begun.json()["event_id"]
        return self.web.get(f"/gradio_api/call/{name}/{number}").text.strip().split("\n\n")[-1]

    def choose(self, picture: object, session: str | None = None) -> str:
        return self.call("choose", [picture, QUESTION, OPTIONS, "base"], session)


@pytest.fixture(scope="module")
def bare(start, tmp_path_factory) -> Demo:
    """The bare base, with room for little and with little patience."""
    return start(
        *("--adapter", "none", "--model", "tiny", "--device", "cpu", "--read-timeout", "1"),
        *("--max-upload-mb", "1", "--max-client-mb", "4", "--max-uploads-mb", "5"),
    )


@pytest.fixture(scope="module")
def locked(start, tmp_path_factory) -> Demo:
    password = tmp_path_factory.mktemp("password") / "password"
    password.write_text("correct horse\n")
    return start(
        *("--adapter", "none", "--model", "tiny", "--device", "cpu"),
        *("--auth", f"me:{password}", "--read-timeout", "1"),
    )


def looks(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns


def test_no_picture_by_its_path(bare, tmp_path):
    """Whatever is sent, the answer is one and the same, and the picture is not touched."""
    private = tmp_path / "private.png"
    private.write_bytes(jpeg())
    os.utime(private, (1, 1))  # a read would be seen, where the file system says so at all
    one, other = Web(bare.url), Web(bare.url)
    theirs = one.upload()
    folder = Path(theirs).parent
    link = folder / "link.png"
    link.symlink_to(private)
    before = looks(private)
    paths = [
        str(private), "/nowhere/at/all.png", "private.png", os.path.relpath(private), "", "/", "\0",
        str(link), f"{folder}/../../{private}", f"file://{private}", str(folder), theirs + "/",
        "http://127.0.0.1:1/x.png", "data:image/png;base64,AAAA", "/etc/passwd",
    ]  # fmt: skip
    sent: list[object] = [{"path": path} for path in [*paths, theirs]]
    sent += [{"path": path, "meta": FILE} for path in [*paths, theirs]]
    sent += [{"path": str(private), "meta": meta} for meta in ({}, None, {"_type": "x"}, "x", [])]
    sent += [
        {"url": f"/gradio_api/file={private}", "meta": FILE},
        {"path": None, "url": f"{bare.url}/gradio_api/file={theirs}"},
        {"path": str(private), "url": f"{bare.url}/gradio_api/file={private}", "is_stream": True},
        {"path": [str(private)]}, str(private), [str(private)], 3, True, {},
    ]  # fmt: skip
    answers = {other.choose(given) for given in sent}
    answers |= {other.call("ask", [given, QUESTION, "base", [], 0, 1]) for given in sent[:3]}
    answers |= {
        other.call("ask", [None, QUESTION, "base", [given], 0, 1])
        for given in ({"path": str(private), "meta": FILE}, [{"path": theirs, "meta": FILE}])
    }
    assert len(answers) == 1, answers
    assert "not among your uploads" in answers.pop()
    assert looks(private) == before
    assert "probabilities" in one.choose({"path": theirs, "meta": FILE})
    assert "Traceback" not in bare.output


@pytest.mark.parametrize("cookies", [True, False])
def test_an_upload_is_one_sessions(bare, cookies):
    web = Web(bare.url, cookies)
    path = web.upload()
    for _ in range(2):
        assert "probabilities" in web.choose({"path": path}, "mine")
    for other in (web, Web(bare.url), Web(bare.url, cookies=False)):
        for session in ("other", None):
            assert "not among your uploads" in other.choose({"path": path}, session)
    for other in (Web(bare.url), Web(bare.url, cookies=False)):
        answer = other.web.get(f"/gradio_api/file={path}")
        assert answer.status_code == (404 if cookies or other.keeps else 200)
    if cookies:
        assert web.web.get(f"/gradio_api/file={path}").content.startswith(b"\xff\xd8")


def test_an_upload_without_a_session_is_for_calls_without_one(bare):
    web = Web(bare.url, cookies=False)
    path = web.upload()
    assert "probabilities" in web.choose({"path": path})
    assert "probabilities" in web.choose({"path": path, "meta": FILE})
    assert "not among your uploads" in web.choose({"path": path}, "someone")


def test_the_same_content_has_another_path(bare):
    content = jpeg()
    assert Web(bare.url).upload(content) != Web(bare.url).upload(content)


def test_what_a_browser_could_run_is_not_shown(bare):
    web = Web(bare.url)
    for name in ("x.html", "x.svg", "x.js"):
        answer = web.web.get(f"/gradio_api/file={web.upload(b'<script>1</script>', name)}")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["private.png", "/nowhere", "/etc/passwd", "http://127.0.0.1:1/x"])
def test_files_that_are_not_uploads(bare, path):
    answer = Web(bare.url).web.get(f"/gradio_api/file={path}")
    assert answer.status_code == 404
    assert answer.json() == {"detail": "There is no such file among your uploads."}


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /gradio_api/proxy=https://x.hf.space/",
        "GET /gradio_api/deep_link?session_hash=x",
        "GET /gradio_api/stream/x/y/1/playlist.m3u8",
        "GET /gradio_api/custom_component/x/client/component/index.js",
        "GET /gradio_api/startup-events",
        "GET /gradio_api/token",
        "GET /gradio_api/queue/status",
        "GET /gradio_api/runs",
        "GET /gradio_api/dev/reload",
        "GET /gradio_api/file/x",
        "GET /monitoring",
        "GET /monitoring/summary",
        "GET /svelte/x",
        "GET /gradio_api/mcp/",
        "GET /docs",
        f"GET /assets/{'x' * 5000}",
        f"GET /static{'/x' * 3000}",
        "GET /static/%2e%2e/%2e%2e/x",
        "GET /openapi.json",
        "POST /gradio_api/component_server",
        "POST /gradio_api/run-history/connect",
        "POST /gradio_api/run/choose",
        "POST /gradio_api/api/choose",
        "POST /gradio_api/call/v2/choose",
        "POST /gradio_api/call/look",
        "POST /gradio_api/stream/x",
        "PUT /gradio_api/upload",
        "OPTIONS /gradio_api/queue/join",
    ],
)
def test_what_is_not_needed_is_shut(bare, request_line):
    method, path = request_line.split()
    answer = httpx.request(method, bare.url + path, timeout=60)
    assert (answer.status_code, answer.json()) == (404, {"detail": "There is nothing here."})


def test_hosts_and_origins(bare):
    evil = "http://evil.example"
    for method, path in (
        ("GET", ""),
        ("GET", "gradio_api/queue/data?session_hash=x"),
        ("POST", "gradio_api/queue/join"),
        ("POST", "gradio_api/upload"),
    ):
        url = f"{bare.url}/{path}"
        assert httpx.request(method, url, headers={"host": "evil.example"}).status_code == 400
        for origin in (evil, "null"):
            answer = httpx.request(method, url, headers={"origin": origin})
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
        foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert httpx.request(method, url, headers=foreign).status_code == 403
    port = bare.url.rpartition(":")[2]
    assert httpx.get(bare.url, headers={"host": f"localhost:{port}"}).status_code == 200


def test_nobody_says_who_he_is(bare):
    said = {
        "x-forwarded-host": "evil.example", "x-forwarded-proto": "https", "forwarded": "host=evil",
        "x-forwarded-for": "6.6.6.6", "x-gradio-server": "http://evil.example",
        "x-forwarded-prefix": "/evil",
    }  # fmt: skip
    for path in ("/", "/config", "/gradio_api/info"):
        answer = httpx.get(bare.url + path, headers=said)
        assert answer.status_code == 200
        assert "evil" not in answer.text
        assert "https://127" not in answer.text


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/proxy=x", "/theme.css"])
def test_every_answer_has_its_policy(bare, path):
    headers = httpx.get(bare.url + path).headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "script-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


NUMBERS = ["1e-300", "9" * 400, "1e999", "NaN", "Infinity", "-Infinity"]
BODIES = [
    *(f'{{"data": [null, "Why?", "base", [], {number}, 8]}}' for number in NUMBERS),
    *(f'{{"data": [null, "Why?", "base", [], 0, {number}]}}' for number in NUMBERS),
    r'{"data": [null, "\ud800", "base", [], 0, 8]}',
    r'{"data": [null, "Why?", "base", [["\udfff", ""]], 0, 8]}',
    *(
        f'{{"data": [null, "Why?", "base", {history}, 0, 8]}}'
        for history in ("[" * 500 + "]" * 500, f"[{','.join(['[]'] * 250_000)}]")
    ),
    *(json.dumps({"data": [None] * count}) for count in (0, 1, 5, 7, 100)),
    '{"data": [null, "Why?", "base", [], "hot", 8]}',
    '{"data": [null, "Why?", "base", [], 0, 8.5]}',
    '{"data": [null, {"a": 1}, ["b"], {}, true, false]}',
    '{"data": [null, null, null, null, null, null]}',
    '{"data": [null, "Why?", "base", [], 0.001, 8]}',
    '{"data": [null, "Why?", "base", [], 0, 8], "batched": true}',
    '{"data": [null, "Why?", "base", [], 0, 8], "session_hash": ["x"]}',
    '{"data": [null, "Why?", "base", [], 0, 8], "session_hash": "../x"}',
    '{"data": {}}', "[]", "null", "3", "{", "", '"\xff"',
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_odd_values(bare, body):
    """A clear error, and no traceback in the log."""
    web = Web(bare.url, cookies=False).web
    headers = {"content-type": "application/json"}
    answer = web.post("/gradio_api/call/ask", content=body.encode("latin-1"), headers=headers)
    if answer.status_code == 200:
        events = web.get(f"/gradio_api/call/ask/{answer.json()['event_id']}").text
        assert events.startswith("event: error"), events
        assert json.loads(events.partition("data: ")[2])["error"]
    else:
        assert answer.status_code in (400, 413, 422)
        assert len(answer.json()["detail"]) > 10
    assert "Traceback" not in bare.output


def test_odd_values_of_the_page(bare):
    """The page's own events are called as its browser side never would."""
    web = Web(bare.url)
    config = web.web.get("/config").json()
    for function in config["dependencies"]:
        for data in ([], [None] * 20, [{"path": "/etc/passwd", "meta": FILE}] * 7, ["x"] * 7):
            for given in (data, data[: len(function["inputs"])]):
                body = {"data": given, "fn_index": function["id"], "session_hash": "odd"}
                way = "queue/join" if function["queue"] else "run/predict"
                answer = web.post(way, json=body)
                assert answer.status_code in (200, 422, 500, 503), answer.text
                assert "root:" not in answer.text
    assert web.post("queue/join", json={"data": [], "fn_index": 10**6}).status_code == 422
    assert web.post("queue/join", json={"data": [], "fn_index": "x"}).status_code == 422
    assert httpx.get(f"{bare.url}/gradio_api/queue/data?session_hash=nobody").status_code == 200
    assert httpx.get(f"{bare.url}/gradio_api/call/ask/nothing").status_code == 200
    finish = time.monotonic() + 20
    while "probabilities" not in web.choose(None) and time.monotonic() < finish:
        time.sleep(0.2)
    assert "Traceback" not in bare.output


def test_errors_for_programs_are_plain_text(bare):
    given = 'it\'s <b> & "x"'
    said = Web(bare.url).call("choose", [None, QUESTION, OPTIONS, given])
    assert f"There is no adapter {given!r}" in json.loads(said.partition("data: ")[2])["error"]


def test_large_calls_are_refused_before_they_are_read(bare):
    def resident() -> int:
        status = Path(f"/proc/{bare.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    before = resident()
    body = '{"data": [null, "Why?", "base", [' + ",".join(["[]"] * 3_000_000) + "], 0, 8]}"
    answer = httpx.post(f"{bare.url}/gradio_api/call/ask", content=body, timeout=60)
    assert answer.status_code == 413
    assert resident() - before < 50_000  # kB


def test_uploads_do_not_fill_the_disk(bare):
    """One address keeps its newest; what is received at once counts too."""
    web = Web(bare.url)
    first = web.upload(bytes(900_000))
    paths = [web.upload(bytes(900_000)) for _ in range(8)]
    assert sum(path.stat().st_size for path in bare.uploads) <= 4_000_000
    assert not Path(first).exists()
    assert Path(paths[-1]).exists()

    statuses: list[int] = []

    def send() -> None:
        files = {"files": ("x.png", bytes(900_000), "image/png")}
        statuses.append(httpx.post(f"{bare.url}/gradio_api/upload", files=files).status_code)

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(statuses) <= {200, 507}
    assert sum(path.stat().st_size for path in bare.uploads) <= 4_000_000
    assert web.post("upload", files={"files": ("x", bytes(1_500_000))}).status_code == 413
    assert web.post("upload", files={"other": ("x", b"x")}).status_code == 400
    assert web.post("upload", content=b"x").status_code == 400
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert web.post("upload", content=b"no form", headers=broken).status_code == 400
    assert "Traceback" not in bare.output


@pytest.mark.parametrize("kind", ["bare", "locked"])
def test_half_sent_requests_are_not_held(kind, request):
    """All at once: each is cut off in its own time."""
    url = request.getfixturevalue(kind).url
    port = int(url.rpartition(":")[2])
    begun = time.monotonic()
    with ExitStack() as stack:
        connections = []
        for sent in (
            b"",
            b"GET / HTTP/1.1\r\nhost: 127",
            b"POST /login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\nuser",
            b"POST /gradio_api/upload HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n\r\n--x\r\n",
        ):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            connections.append(stack.enter_context(connection))
            connection.sendall(sent)
        for connection in connections:
            while connection.recv(4096):
                pass
    assert time.monotonic() - begun < 10


def test_nothing_is_held_for_who_has_not_logged_in(locked):
    for path in (
        "heartbeat/x", "queue/data?session_hash=x", "call/ask/x", "upload_progress?upload_id=x",
        "file=x", "info", "user",
    ):  # fmt: skip
        answer = httpx.get(f"{locked.url}/gradio_api/{path}", timeout=10)
        assert answer.status_code == 401, path
    for path in ("cancel", "reset", "run/predict", "call/ask", "upload"):
        assert httpx.post(f"{locked.url}/gradio_api/{path}", json={}).status_code == 401
    assert httpx.get(f"{locked.url}/config").status_code == 401
    page = httpx.get(locked.url, headers={"accept": "text/html"})
    assert page.status_code == 200
    assert "auth_required" in page.text
    assert "max_new_tokens" not in page.text  # nothing of the endpoints either


def test_guesses_are_few(locked):
    """The last of this file with that demo: it is locked then."""

    def guess(password: str = "wrong") -> int:
        form = {"username": "me", "password": password}
        return httpx.post(f"{locked.url}/login", data=form, timeout=60).status_code

    assert guess("correct horse") == 200
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(guess())) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses.count(400) == 5
    assert statuses.count(429) == 35
    assert guess("correct horse") == 429
    assert locked.output.count("wrong login of 'me' from 127.0.0.1") == 5
    assert "locked for a while" in locked.output
    assert "correct horse" not in locked.output
