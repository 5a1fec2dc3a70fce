"""What attackers send: it is refused in words, nothing is fetched or opened, nobody is held up."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import torch

from tests.demo.test_limits import PICTURES, jpeg
from tests.serve.conftest import NEEDS, QUESTION, SCENE, about, data_uri
from vlmoe.demo.engine import Asked, Engine
from vlmoe.finite import NO_NUMBERS, NotFinite
from vlmoe.serve import serving
from vlmoe.tasks.predict import Said

httpx = pytest.importorskip("httpx", reason=NEEDS)

ROOT = Path(__file__).parents[2]
CHAT = "v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = [{"role": "user", "content": QUESTION}]


@dataclass
class Running:
    """A running ``vlmoe serve``."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()

    def post(self, body: object = None, **change):
        body = {"model": "base", "messages": USER, "max_tokens": 2} if body is None else body
        return httpx.post(f"{self.url}{CHAT}", json={**body, **change}, timeout=60)

    def refuses(self, status: int = 400, **change) -> str:
        """The message."""
        answer = self.post(**change)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]["message"]

    def raw(self, content: bytes | str, **headers: str):
        headers = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{self.url}{CHAT}", content=content, headers=headers, timeout=60)

    @property
    def largest(self) -> int:
        """Memory that it has had at most, in kB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    """The command itself, with little patience."""
    log = tmp_path_factory.mktemp("serve") / "log"
    flags = ["--adapter", "none", "--model", "tiny", "--device", "cpu", "--read-timeout", "1"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmoe", "serve", *flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    finish = time.monotonic() + 600
    while "Ready: " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < finish, log.read_text()
        time.sleep(0.2)
    (url,) = re.findall(r"vlmoe serve on (\S+)v1", log.read_text())
    yield Running(url, process, log)
    process.kill()
    process.wait(60)


@pytest.fixture(autouse=True)
def unharmed(request) -> Iterator[None]:
    """After every attack the server answers, and its log holds no traceback."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        assert server.post().status_code == 200
        assert "Traceback" not in server.output


def test_no_picture_by_address_or_path(server, tmp_path):
    """Nothing is opened, nothing is asked of the network; the message says which way it was."""
    private = tmp_path / "private.png"
    private.write_bytes(jpeg())
    os.utime(private, (1, 1))
    before = private.stat()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        port = listening.getsockname()[1]
        for address in (
            f"http://127.0.0.1:{port}/x.png", f"HTTPS://127.0.0.1:{port}/x.png",
            f" http://127.0.0.1:{port}/x.png", f"//127.0.0.1:{port}/x.png",
            f"file://{private}", f"FILE:{private}", str(private), os.path.relpath(private),
            "private.png", "/etc/passwd", "", ".", "\0", "x" * 1_000_000, "ftp://x/y", "blob:x",
            "javascript:alert(1)", f"data:text/plain,{private}", f"data:{private}",
            f"data:image/png,{private}", "data:image/png;base64", "data:;base64,AAAA",
            "data:text/html;base64,AAAA", f"data:image/png;base64;file={private},AAAA",
        ):  # fmt: skip
            message = server.refuses(messages=about(address))
            assert "pictures are taken as data:image/...;base64,... only" in message
            assert len(message) < 250
        with pytest.raises(TimeoutError):
            listening.accept()
    after = private.stat()
    assert (after.st_atime_ns, after.st_ctime_ns) == (before.st_atime_ns, before.st_ctime_ns)


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_are_none(server, case):
    content, words = PICTURES[case]
    before = server.largest
    assert words in server.refuses(messages=about(data_uri(content)))
    assert server.largest - before < 200_000


@pytest.mark.parametrize("content", ["=", "A", "AAAA AAAA", "AA\nAA", "A-_A", "%41", "\u00e9"])
def test_what_is_not_base64(server, content):
    message = server.refuses(messages=about(f"data:image/png;base64,{content}"))
    assert message == ("messages[0].content[0].image_url.url is not base64 behind its comma")


def test_a_drawing_that_could_run_is_no_picture(server):
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>'
    url = data_uri(drawing).replace("png", "svg+xml")
    assert "not a picture in a known format" in server.refuses(messages=about(url))


PICTURE = about(data_uri(SCENE))
FOUR = [{"role": "user", "content": [*PICTURE[0]["content"], *PICTURE[0]["content"][:1] * 3]}]
MESSAGES = {
    "none": ([], "a list of one message or more"),
    "no list": ("Why?", "a list of one message or more"),
    "texts": (["Why?"], "messages[0] must be an object"),
    "too many": (USER * 1001, "1,001 messages, at most 201"),
    "a system message": ([{"role": "system", "content": "x"}, *USER], "put what it says into the"),
    "a developer's": ([{"role": "developer", "content": "x"}, *USER], "is a developer message"),
    "a tool's": ([{"role": "tool", "content": "x"}], "messages[0].role is 'tool', not 'user'"),
    "no role": ([{"content": "x"}], "messages[0].role is None"),
    "a role that is none": ([{"role": ["user"], "content": "x"}], "role is ['user'], not"),
    "the model begins": ([{"role": "assistant", "content": "x"}], "the user begins"),
    "two questions": (USER * 2, "messages[1].role is 'user', not 'assistant'"),
    "nothing to answer": ([*USER, {"role": "assistant", "content": "x"}], "must be the user's"),
    "no content": ([{"role": "user"}], "messages[0].content must be a text or a list"),
    "a number": ([{"role": "user", "content": 3}], "messages[0].content must be a text"),
    "an empty question": ([{"role": "user", "content": " "}], "The question is empty"),
    "a long one": ([{"role": "user", "content": "x" * 9000}], "9,000 characters, at most 8,000"),
    "markup": ([{"role": "user", "content": "What is <image>?"}], "reserved text '<image>'"),
    "a name": ([{"role": "user", "content": "x", "name": "me"}], "holds 'name', which is not"),
    "a call": (
        [*USER, {"role": "assistant", "content": "x", "tool_calls": [{}]}, *USER],
        "messages[1] holds 'tool_calls'",
    ),
    "four pictures": (FOUR, "messages[0] has picture 4: a conversation is about 3 at most"),
    "a fourth picture later": (
        [{"role": "user", "content": FOUR[0]["content"][:-1]},
         {"role": "assistant", "content": "x"}, *PICTURE],
        "messages[2] has picture 4",
    ),
    "a picture of the model's": (
        [*USER, {"role": "assistant", "content": PICTURE[0]["content"]}, *USER],
        "messages[1] has a picture: only the user shows some",
    ),
    "only a picture": (
        [{"role": "user", "content": PICTURE[0]["content"][:1]}], "has 0 parts of text: give one",
    ),
    "no parts": ([{"role": "user", "content": []}], "has 0 parts of text"),
    "sound": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        "messages[0].content[0] is no part that is taken",
    ),
    "a part that is none": ([{"role": "user", "content": [[]]}], "is no part that is taken"),
    "a type that is none": ([{"role": "user", "content": [{"type": []}]}], "is no part"),
    "a part with more": (
        [{"role": "user", "content": [{"type": "text", "text": "x", "path": "/etc"}]}],
        "is no part that is taken",
    ),
    "an address alone": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]}],
        'image_url must be {"url"',
    ),
    "an address with more": (
        [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_uri(SCENE), "path": "/etc/passwd"}},
            {"type": "text", "text": "Why?"}]}],
        "holds 'path', which is not taken",
    ),
    "detail": (
        [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_uri(SCENE), "detail": "high"}},
            {"type": "text", "text": "Why?"}]}],
        "image_url.detail is not supported",
    ),
    "a long conversation": (
        [*USER, {"role": "assistant", "content": "x" * 60_000}, *USER],
        "60,0", # and what the question has
    ),
    "too many tokens": (
        [*USER, {"role": "assistant", "content": "\u4e2d" * 20_000}, *USER], "begin a new one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(server, case):
    messages, words = MESSAGES[case]
    assert words in server.refuses(messages=messages)


KEYS = [
    *({"max_tokens": value} for value in (0, -1, 257, 10**9, 10**15, 8.5, True, "8", [8], {})),
    *({"max_completion_tokens": value} for value in (0, 10**9)),
    {"max_tokens": 8, "max_completion_tokens": 9},
    *({"temperature": value} for value in (-1, 2.1, 0.001, -0.5, True, "hot", [], {})),
    *({"seed": value} for value in (-1, 2**53, 1.5, True, "x")),
    *({"stop": value} for value in ("", ["x"] * 17, ["x" * 101], [1], [None], {}, 3, [[]])),
    *({"stream": value} for value in (1, "true", [], {})),
    {"stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": []},
    {"stream": True, "stream_options": {"include_usage": 1}},
    {"stream": True, "stream_options": {"include_all": True}},
    {"stream": True, "stream_options": {"include_obfuscation": True}},
    *({"n": value} for value in (0, 2, 10**9, "1", True)),
    {"top_p": 0.5}, {"top_p": True}, {"presence_penalty": 1}, {"frequency_penalty": -1},
    {"logprobs": True}, {"top_logprobs": 5}, {"logit_bias": {"1": 100}},
    {"response_format": {"type": "json_object"}}, {"tools": [{"type": "function"}]},
    {"tool_choice": "auto"}, {"functions": []}, {"audio": {}}, {"modalities": ["audio"]},
    {"store": True}, {"prompt": "x"}, {"adapter": "/etc"}, {"__class__": "x"}, {"": 1},
    {"x" * 10_000: 1},
    {"model": ["base"]}, {"model": {}}, {"model": 1}, {"model": True},
]  # fmt: skip


@pytest.mark.parametrize("change", KEYS, ids=range(len(KEYS)))
def test_keys(server, change):
    """Each is refused before anything is worked out, and by its name."""
    message = server.refuses(**change)
    assert any(name[:20] in message for name in (*change, "include_")), message
    assert len(message) < 300


@pytest.mark.parametrize(
    "name", ["", "tiny", "../base", "/etc/passwd", "base/", "Base", "x" * 10_000, "\n", "\u202e"]
)
def test_models_that_are_not_there(server, name):
    assert "there is no model" in server.refuses(404, model=name)
    assert httpx.get(f"{server.url}v1/models/{quote(name[:1000])}").status_code == 404


def test_what_is_left_out_or_null(server):
    assert server.post({}).status_code == 400
    assert server.post({"model": "base"}).status_code == 400
    assert server.post({"messages": USER}).status_code == 400
    nothing = dict.fromkeys(["temperature", "stop", "stream", "n", "logprobs", "tools", "user"])
    assert server.post(**nothing).status_code == 200


def test_what_changes_nothing_is_taken(server):
    same = {"n": 1, "top_p": 1.0, "presence_penalty": 0, "frequency_penalty": 0.0, "tools": [],
            "logprobs": False, "response_format": {"type": "text"}, "user": "me"}  # fmt: skip
    text = server.post().json()["choices"][0]["message"]["content"]
    assert server.post(**same).json()["choices"][0]["message"]["content"] == text


BODIES = {
    "NaN": ('{"model": "base", "temperature": NaN}', "NaN, which is no number"),
    "Infinity": ('{"model": "base", "max_tokens": Infinity}', "Infinity, which is no number"),
    "minus Infinity": ('{"model": "base", "seed": -Infinity}', "-Infinity, which is no number"),
    "1e999": ('{"model": "base", "temperature": 1e999}', "the number 1e999"),
    "1e-300": ('{"model": "base", "temperature": 1e-300}', "the number 1e-300"),
    "400 digits": (f'{{"max_tokens": {"9" * 400}}}', "a number of 400 digits"),
    "depth": ("[" * 500 + "]" * 500, "deeper than 16"),
    "great depth": ('{"a":' * 90_000 + "1" + "}" * 90_000, "deeper than 16"),
    "many values": (f'{{"messages": [{",".join(["[]"] * 250_000)}]}}', "more than 20,000"),
    "a key twice": ('{"model": "base", "model": "first", "messages": []}', "a key stands twice"),
    "an escaped key twice": (r'{"model": "base", "mod\u0065l": "x"}', "a key stands twice"),
    "half a character": (r'{"model": "\ud800"}', "half a character"),
    "half a character as a key": (r'{"\udfff": 1}', "half a character"),
    "a list": ("[]", "must be a JSON object"),
    "null": ("null", "must be a JSON object"),
    "a number": ("3", "must be a JSON object"),
    "a text": ('"x"', "must be a JSON object"),
    "half": ('{"model": "base"', "no JSON"),
    "two": ('{"model": "base"} {}', "no JSON"),
    "nothing": ("", "no JSON"),
    "a comment": ("// x", "no JSON"),
    "no UTF-8": (b'{"model": "\xff"}', "not UTF-8"),
    "UTF-16": ('{"model": "base"}'.encode("utf-16"), "not UTF-8"),
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies(server, case):
    content, words = BODIES[case]
    answer = server.raw(content)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": "application/json; charset=utf-16"},
        {"content_type": "application/jsonp"},
        {"content_type": ""},
        {"content_encoding": "gzip"},
        {"content_encoding": "deflate, gzip"},
    ],
)
def test_other_kinds_of_content(server, headers):
    """A page of another site can send the first three without asking; the last could swell."""
    body = json.dumps({"model": "base", "messages": USER, "max_tokens": 1})
    answer = server.raw(body, **headers)
    assert answer.status_code == 415
    assert "content-" in answer.json()["error"]["message"]
    assert server.raw(body, content_type='Application/JSON; Charset="UTF-8"').status_code == 200


def test_hosts_and_origins(server):
    port = server.url.rstrip("/").rpartition(":")[2]
    for method, path in (("GET", "v1/models"), ("POST", CHAT), ("GET", "health"), ("GET", "")):
        address = f"{server.url}{path}"
        for host in (
            "evil.example",
            f"evil.example:{port}",
            "127.0.0.1.evil.example",
            "x@127.0.0.1",
        ):
            answer = httpx.request(method, address, headers={"host": host})
            assert answer.status_code == 400
            assert "host name" in answer.json()["error"]["message"]
        for headers in (
            {"origin": "http://evil.example"}, {"origin": "null"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
        ):  # fmt: skip
            answer = httpx.request(method, address, headers=headers)
            assert answer.status_code == 403
            assert "access-control-allow-origin" not in answer.headers
    forwarded = {"x-forwarded-host": "evil.example", "x-forwarded-for": "6.6.6.6"}
    answer = httpx.get(f"{server.url}v1/models", headers=forwarded)
    assert answer.status_code == 200
    assert "evil" not in answer.text
    assert httpx.get(f"http://localhost:{port}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "request_line",
    [
        "GET /", "GET /v1", "GET /v1/", "GET /v1/models/", "POST /v1/models", "GET /docs",
        "GET /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings",
        "POST /v1/responses", "GET /openapi.json", "DELETE /v1/models/base", "GET /v1/../health",
        "GET /v1/models/%2e%2e/%2e%2e/etc/passwd", "PUT /v1/chat/completions",
        "OPTIONS /v1/chat/completions", "GET /metrics", "POST /v1/load_lora_adapter",
        f"GET /v1/models/{'x' * 5000}",
    ],
)  # fmt: skip
def test_nothing_else_is_there(server, request_line):
    method, path = request_line.split()
    answer = httpx.request(method, server.url.rstrip("/") + path, timeout=60)
    if path == "/v1/../health":  # which the client itself shortens
        assert answer.status_code == 200
        return
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert len(answer.text) < 400


def test_large_requests_are_refused_before_they_are_read(server):
    before = server.largest
    body = json.dumps(
        {"model": "base", "messages": about("data:image/png;base64," + "A" * 40_000_000)}
    )
    answer = server.raw(body)
    assert answer.status_code == 413
    assert "may hold" in answer.json()["error"]["message"]

    def pieces() -> Iterator[bytes]:  # without a length
        for _ in range(40):
            yield b" " * 1_000_000

    try:
        answer = httpx.post(f"{server.url}{CHAT}", content=pieces(), headers=JSON, timeout=60)
    except httpx.WriteError:  # it was cut off while it was being sent
        pass
    else:
        assert answer.status_code == 413
    assert server.largest - before < 100_000


def test_half_sent_requests_are_not_held(server):
    """All at once: each is cut off in its own time."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    begun = time.monotonic()
    with ExitStack() as stack:
        connections = []
        for sent in (
            b"",
            b"POST /v1/chat/comp",
            head,
            head + b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n",
            head + b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{",
            head + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
            head + b"content-type: application/json\r\nexpect: 100-continue\r\n"
            b"content-length: 1000\r\n\r\n",
        ):
            connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            connections.append(stack.enter_context(connection))
            connection.sendall(sent)
        for connection in connections:
            while connection.recv(4096):
                pass
    assert time.monotonic() - begun < 10


@pytest.mark.slow
def test_a_body_drop_by_drop_is_not_waited_for(server):
    """A byte comes in time, but all of it never would."""
    port = int(server.url.rstrip("/").rpartition(":")[2])
    begun, answer = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
        )
        while not answer:
            connection.sendall(b" ")
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                continue
    assert 5 < time.monotonic() - begun < 20  # 12 seconds are given
    assert b" 408 " in answer


class Talker(Engine):
    """Talks without end, a word in a moment, and counts its words."""

    ready = True
    status = "Ready: talker"
    words = 0
    begun = 0

    def __init__(self):
        super().__init__("tiny", {}, device=torch.device("cpu"), limits=serving.USUAL)

    def ask(self, picture, turns, name, **_):
        self.begun += 1
        text = ""
        while True:
            self.words += 1
            time.sleep(0.02)
            text = f"{text} word".strip()
            if "fail" in turns[0].question and self.words > 3:
                raise RuntimeError("a secret of the server")
            if "break" in turns[0].question and self.words > 3:
                raise NotFinite(NO_NUMBERS)
            if "memory" in turns[0].question:
                raise torch.OutOfMemoryError("of the device, in many words")
            yield Said(text, (1,) * self.words), Asked({"attention_mask": torch.ones(1, 7)})

    def falls_silent(self) -> bool:
        """Whether it stops talking within a while."""
        finish, words = time.monotonic() + 30, -1
        while words != self.words and time.monotonic() < finish:
            words = self.words
            time.sleep(0.3)
        return words == self.words


@pytest.fixture
def talker() -> Talker:
    return Talker()


def body(question: str = QUESTION, **more) -> dict:
    return {"model": "base", "messages": [{"role": "user", "content": question}], **more}


def test_who_hangs_up_mid_stream_ends_the_answer(start, talker):
    url = start(talker)
    with httpx.stream("POST", f"{url}{CHAT}", json=body(stream=True), timeout=60) as answer:
        lines = answer.iter_lines()
        while '"content": " word"' not in next(lines):
            pass
    assert talker.falls_silent()
    assert 1 < talker.words < 500


def test_who_hangs_up_on_a_whole_answer_ends_it_too(start, talker):
    url = start(talker)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}{CHAT}", json=body(), timeout=1)
    assert talker.falls_silent()
    assert talker.words > 3


def test_who_leaves_the_line_leaves_it_at_once(start, talker):
    """The one that is answered holds the model; those who waited are gone before their turn."""
    url = start(talker, "--queue", "3")
    with httpx.stream("POST", f"{url}{CHAT}", json=body(stream=True), timeout=60) as first:
        lines = first.iter_lines()
        next(lines)
        for _ in range(3):  # each time the line is filled and left
            with ExitStack() as stack:
                port = int(url.rstrip("/").rpartition(":")[2])
                sent = json.dumps(body()).encode()
                for _ in range(3):
                    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    connection.sendall(
                        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
                        b"content-type: application/json\r\n"
                        b"content-length: %d\r\n\r\n%s" % (len(sent), sent)
                    )
                time.sleep(0.5)
                refused = httpx.post(f"{url}{CHAT}", json=body(), timeout=60)
                assert refused.status_code == 429
                assert "3 requests are waiting" in refused.json()["error"]["message"]
                assert int(refused.headers["retry-after"]) >= 1
            time.sleep(0.5)
        assert talker.begun == 1
    assert talker.falls_silent()
    assert talker.begun == 1


def test_a_slow_reader_holds_nobody_up(start, engine):
    """What was said to it waits; the model answers others."""
    url = start(engine)
    port = int(url.rstrip("/").rpartition(":")[2])
    sent = json.dumps(body(stream=True, max_tokens=50)).encode()
    with ExitStack() as stack:
        for _ in range(3):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.connect(("127.0.0.1", port))
            slow.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: "
                b"application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(sent), sent)
            )
        time.sleep(0.2)
        answer = httpx.post(f"{url}{CHAT}", json=body(max_tokens=3), timeout=60)
        assert answer.status_code == 200


def test_many_at_once_are_turned_away_in_order(start, talker):
    """Fifty come, three may wait: the others hear so at once, and nobody is left behind."""
    url = start(talker, "--queue", "3")
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(httpx.post(f"{url}{CHAT}", json=body(), timeout=3).status_code)
        except httpx.ReadTimeout:
            statuses.append(0)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(statuses) == [0] * 4 + [429] * 46
    assert talker.falls_silent()


def test_bodies_in_hand_have_bounded_room(start, talker):
    """One address may send half of it; requests that are being read count, whatever they say."""
    url = start(talker, "--max-waiting-mb", "10", "--max-upload-mb", "2")
    port = int(url.rstrip("/").rpartition(":")[2])
    with ExitStack() as stack:
        for _ in range(2):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            held.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: "
                b"application/json\r\ncontent-length: 2500000\r\n\r\n" + b" " * 2_400_000
            )
        time.sleep(1)
        more = httpx.post(f"{url}{CHAT}", content=b" " * 1_000_000, headers=JSON, timeout=60)
        assert more.status_code == 503
        assert "no room" in more.json()["error"]["message"]
    time.sleep(0.5)
    again = httpx.post(f"{url}{CHAT}", content=b" " * 1_000_000, headers=JSON, timeout=60)
    assert again.status_code == 400  # there is room, and it is no JSON


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("question", "words", "status"),
    [
        ("please fail", "something went wrong; the server's log says what", 500),
        ("please break", NO_NUMBERS, 500),
        ("no memory", "not enough memory", 503),
    ],
)
def test_faults_of_the_server_tell_no_secret(
    start, talker, question, words, status, stream, caplog
):
    """Before the first word by the status, behind it as an event of the stream."""
    url = start(talker)
    answer = httpx.post(f"{url}{CHAT}", json=body(question, stream=stream), timeout=60)
    assert words.lower() in answer.text.lower()
    assert "secret" not in answer.text
    assert "DONE" not in answer.text
    assert answer.status_code == (200 if stream and status == 500 else status)
    secret = "a secret of the server"
    patience = time.monotonic() + 20 * ("fail" in question)  # it is written behind the answer
    while secret not in caplog.text and time.monotonic() < patience:
        time.sleep(0.05)
    assert (secret in caplog.text) == ("fail" in question)  # into the log


def test_the_key_is_asked_for_before_a_body_is_read(start, talker):
    key = "0123456789abcdef"
    url = start(talker, key=key)
    port = int(url.rstrip("/").rpartition(":")[2])
    assert httpx.get(f"{url}health").status_code == 200
    for headers in (
        {}, {"authorization": ""}, {"authorization": "Bearer"},
        {"authorization": key}, {"authorization": f"Basic {key}"}, {"x-api-key": key},
        {"authorization": f"Bearer {key}0"}, {"authorization": f"Bearer {key} x"},
        {"authorization": "Bearer \u00e9"},
    ):  # fmt: skip
        encoded = {name: value.encode("utf-8") for name, value in headers.items()}
        for path in ("v1/models", "v1/models/base", "x", "", "health/"):
            answer = httpx.get(f"{url}{path}", headers=encoded)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert (
        httpx.get(f"{url}v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200
    )
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        begun = time.monotonic()
        assert b" 401 " in connection.recv(4096)
        assert time.monotonic() - begun < 3
    assert talker.begun == 0


def test_nothing_is_answered_before_the_model_is_there(start):
    engine = Engine("tiny", {}, device=torch.device("cpu"), limits=serving.USUAL)
    url = start(engine)
    assert httpx.get(f"{url}health").status_code == 503
    answer = httpx.post(f"{url}{CHAT}", json=body(), timeout=60)
    assert answer.status_code == 503
    assert "Loading" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"]
