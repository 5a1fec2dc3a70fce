"""The server: its endpoints for programs, what it refuses, and what it keeps and shows to whom."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.demo.conftest import APP, NEEDS, Demo, load_app
from tests.demo.test_limits import PICTURES, jpeg
from tests.scripts.conftest import command
from vlmoe.data.dataset import load_split
from vlmoe.data.image import ImageError
from vlmoe.demo import serving
from vlmoe.demo.engine import Engine
from vlmoe.demo.examples import write_examples
from vlmoe.demo.limits import Limits
from vlmoe.errors import UserError

httpx = pytest.importorskip("httpx", reason=NEEDS)
gradio_client = pytest.importorskip("gradio_client", reason=NEEDS)

QUESTION = "What colour is the background?"
OPTIONS = ["Grey.", "Pink.", "Brown.", "Teal."]


@pytest.fixture(scope="module")
def client(demo: Demo):
    return gradio_client.Client(demo.url, verbose=False)


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "scene.jpg"
    file.write_bytes(jpeg())
    return file


def ask(client, picture: Path | None, question: str = QUESTION, **more) -> str:
    file = None if picture is None else gradio_client.handle_file(str(picture))
    return client.predict(picture=file, question=question, api_name="/ask", **more)


def choose(client, picture: Path | None, question: str = QUESTION, options=None, **more) -> dict:
    file = None if picture is None else gradio_client.handle_file(str(picture))
    return client.predict(
        picture=file, question=question, options=options or OPTIONS, api_name="/choose", **more
    )


def refused(call, *args, **more) -> str:
    """The message that a call is refused with."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (gradio_client has several)
        call(*args, **more)
    return str(caught.value)


def test_endpoints_answer(client, picture):
    answer = ask(client, picture, max_new_tokens=16)
    assert isinstance(answer, str)
    assert ask(client, picture, max_new_tokens=16) == answer  # temperature 0
    again = ask(client, picture, history=[[QUESTION, answer]], adapter="base", max_new_tokens=16)
    assert isinstance(again, str)

    found = choose(client, picture)
    assert found["options"] == OPTIONS
    assert list(found["answers"]) == ["shapes.first", "base"]
    for said in found["answers"].values():
        assert sum(said["probabilities"]) == pytest.approx(1)
        assert said["probabilities"][said["choice"]] == max(said["probabilities"])
        assert said["letter"] == "ABCD"[said["choice"]]
    assert list(choose(client, picture, adapter="second")["answers"]) == ["second", "base"]


def test_endpoints_are_the_documented_ones(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/ask", "/choose"}
    parameters = {
        name: [one["parameter_name"] for one in endpoint["parameters"]]
        for name, endpoint in named.items()
    }
    docs = (APP.parents[1] / "docs" / "demo.md").read_text()
    for name, names in parameters.items():
        assert name in docs
        for parameter in names:
            assert f"`{parameter}`" in docs


@pytest.mark.parametrize("name", ["shapes.first", "second"])
def test_answers_are_those_of_the_evaluation(
    client, runs, shapes_directory, tmp_path, monkeypatch, name
):
    """Each adapter with its own prompt, on the pictures of the dataset, beside the same base."""
    monkeypatch.chdir(tmp_path)
    flags = ["--adapter", runs / name, "--dataset", shapes_directory, "--device", "cpu"]
    command("evaluate").main([str(flag) for flag in [*flags, "--limit", 4, "--output", "report"]])
    for who, file in ((name, "report"), ("base", "report/base")):
        lines = (tmp_path / file / "predictions.jsonl").read_text().splitlines()
        examples = {example.id: example for example in load_split(shapes_directory, "test")}
        for row in map(json.loads, lines):
            example = examples[row["id"]]
            assert example.image is not None
            example.image.save(tmp_path / "picture.png")
            found = choose(
                client,
                tmp_path / "picture.png",
                example.question,
                list(example.choices),
                adapter=name,
            )["answers"][who]
            assert found["choice"] == row["prediction"]
            assert found["probabilities"] == pytest.approx(row["probabilities"], abs=1e-4)


@pytest.mark.parametrize("case", PICTURES)
def test_bad_pictures(client, picture, tmp_path, case):
    content, words = PICTURES[case]
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    message = refused(choose, client, file)
    assert words in message or "exceeded" in message.lower() or "size" in message.lower()
    assert choose(client, picture)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"question": ""}, "The question is empty"),
        ({"question": "x" * 100_000}, "100,000 characters, at most 2,000"),
        ({"question": "<image>"}, "reserved text"),
        ({"options": ["Red."]}, "There is 1 option"),
        ({"options": [str(number) for number in range(100)]}, "There are 100 options"),
        ({"adapter": "../../etc"}, "There is no adapter"),
    ],
)
def test_bad_questions(client, picture, given, words):
    assert words in refused(choose, client, picture, **given)
    assert choose(client, picture)


def test_markup_in_question_and_options_is_only_text(client, picture):
    nasty = "<script>alert(1)</script>"
    found = choose(client, picture, f"What is {nasty}?", [nasty, "Red."])
    assert found["options"] == [nasty, "Red."]
    assert isinstance(ask(client, picture, f"What is {nasty}?", max_new_tokens=4), str)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"history": [["only a question"]]}, "list of [question, answer]"),
        ({"history": "nothing"}, "list of [question, answer]"),
        ({"history": [[QUESTION, "no " * 20_000]]}, "at most 50,000 are taken"),
        ({"temperature": None}, "temperature must be a number"),
        ({"temperature": 3}, "between 0 and 2"),
        ({"temperature": 0.001}, "not below 0.01 unless it is 0"),
        ({"max_new_tokens": 8.5}, "max_new_tokens must be a whole number"),
        ({"max_new_tokens": 100_000}, "between 1 and 256"),
    ],
)
def test_bad_requests_to_talk(client, picture, given, words):
    assert words in refused(ask, client, picture, **given)
    assert isinstance(ask(client, picture, max_new_tokens=1), str)


def test_an_unexpected_fault_tells_nothing(endless):
    url, _ = endless
    client = gradio_client.Client(url, verbose=False)
    for _ in range(2):  # the second time it still answers
        message = refused(choose, client, None)
        assert "Something went wrong" in message
        assert "secret" not in message


def test_twenty_at_once(demo, client, picture):
    """Some are answered, the queue turns the others away, and then all is as before."""
    results: list[object] = []

    def one() -> None:
        try:
            results.append(ask(client, picture, max_new_tokens=64, temperature=2))
        except Exception as error:  # what was refused is looked at below
            results.append(error)

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert len(results) == 20
    errors = [result for result in results if isinstance(result, Exception)]
    assert 0 < len(errors) < 20
    assert all("queue is full" in str(error).lower() for error in errors)
    assert choose(client, picture)


def test_who_leaves_mid_answer_holds_nobody_up(endless):
    """The rest of a long answer is not worked out for nobody, and the next one is served."""
    url, engine = endless
    config = httpx.get(f"{url}/config", timeout=60).json()
    (function,) = [one for one in config["dependencies"] if one["api_name"] == "ask"]
    data = [None, QUESTION, "base", [], 0, 64]
    for visitor in ("first", "second"):
        session = {"session_hash": visitor}
        body = {"data": data, "fn_index": function["id"], **session}
        assert httpx.post(f"{url}/gradio_api/queue/join", json=body, timeout=60).status_code == 200
        with httpx.stream(
            "GET", f"{url}/gradio_api/queue/data", params=session, timeout=60
        ) as stream:
            assert any("process_generating" in line for line in stream.iter_lines())
        assert engine.falls_silent(), "it goes on talking to nobody"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "{run}/config.yaml",
        "{app}",
        "../../../../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "README.md",
        "log",
        "http://127.0.0.1:1/x",
    ],
)
def test_no_file_but_its_own(demo, runs, path):
    path = path.format(run=runs / "second", app=APP)
    for start in ("/gradio_api/file=", "/file=", "/static/", "/assets/"):
        with httpx.Client(follow_redirects=False) as web:
            answer = web.get(f"{demo.url}{start}{path}")
        assert answer.status_code in (302, 307, 400, 403, 404, 405), (start, path)
        assert b"root:" not in answer.content
        assert b"learning" not in answer.content
        # Gradio answers a web address with the browser's own way there: nothing is fetched.
        if answer.status_code in (302, 307):
            assert answer.headers["location"].startswith("http://127.0.0.1:1/")


@pytest.mark.parametrize(
    "sent",
    [
        {"path": "/etc/passwd"},
        {"path": str(APP)},
        {"path": "http://127.0.0.1:1/picture.png"},
        {"path": "x.png", "url": "data:image/png;base64,AAAA"},
        {"path": "x.png", "url": "http://127.0.0.1:1/picture.png"},
    ],
)
def test_no_picture_but_an_uploaded_one(client, picture, sent):
    given = sent | {"meta": {"_type": "gradio.FileData"}}
    message = refused(
        client.predict, picture=given, question=QUESTION, options=OPTIONS, api_name="/choose"
    )
    assert "root:" not in message
    assert choose(client, picture)


def test_uploads_too_large_are_cut_off(demo):
    files = {"files": ("picture.png", bytes(11_000_000), "image/png")}
    before = set(demo.uploads)
    answer = httpx.post(f"{demo.url}/gradio_api/upload", files=files, timeout=120)
    assert answer.status_code == 413
    assert sum(path.stat().st_size for path in set(demo.uploads) - before) == 0


def test_requests_too_large_are_cut_off(demo):
    """Many files in one request, and a body that is no upload at all."""
    files = [("files", (f"{number}.png", bytes(9_000_000), "image/png")) for number in range(2)]
    assert httpx.post(f"{demo.url}/gradio_api/upload", files=files, timeout=120).status_code == 413
    body = {"data": ["x" * 13_000_000], "fn_index": 0, "session_hash": "large"}
    answer = httpx.post(f"{demo.url}/gradio_api/queue/join", json=body, timeout=120)
    assert answer.status_code == 413


@pytest.mark.parametrize("way", ["run", "api"])
def test_nobody_goes_past_the_queue(demo, way):
    body = {"data": [None, QUESTION, OPTIONS, "base"]}
    answer = httpx.post(f"{demo.url}/gradio_api/{way}/choose", json=body, timeout=60)
    assert answer.status_code in (401, 404, 405)
    assert "probabilities" not in answer.text


def test_it_listens_on_this_machine_only(demo):
    assert demo.url.startswith("http://127.0.0.1:")
    port = int(demo.url.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]
    assert "public link" not in demo.output


def break_off_an_upload(url: str, cookies) -> None:
    """Begin to send a picture, and hang up in the middle of it."""

    def half():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        yield bytes(100_000)
        time.sleep(0.5)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        httpx.post(
            f"{url}/gradio_api/upload",
            content=half(),
            headers={"content-type": "multipart/form-data; boundary=x"},
            cookies=cookies,
        )


def test_a_name_and_a_password_and_uploads_removed(start, picture, tmp_path):
    """A second demo: of the bare base alone, behind a password, keeping uploads for 2 seconds."""
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    demo = start(
        *("--adapter", "none", "--model", "tiny", "--device", "cpu"),
        *("--auth", f"me:{password}", "--keep-uploads", "2"),
    )
    commands = Path(f"/proc/{demo.process.pid}/cmdline").read_text()
    assert "horse" not in commands
    for path in ("config", "gradio_api/info", "gradio_api/file=x"):
        assert httpx.get(f"{demo.url}/{path}").status_code == 401
    files = {"files": ("a.png", b"x", "image/png")}
    assert httpx.post(f"{demo.url}/gradio_api/upload", files=files).status_code == 401
    body = {"data": [None, QUESTION, OPTIONS, "base"], "fn_index": 0, "session_hash": "x"}
    assert httpx.post(f"{demo.url}/gradio_api/queue/join", json=body).status_code == 401
    with pytest.raises(Exception, match="Could not login"):
        gradio_client.Client(demo.url, auth=("me", "wrong"), verbose=False)

    client = gradio_client.Client(demo.url, auth=("me", "correct horse"), verbose=False)
    assert list(choose(client, picture)["answers"]) == ["base"]
    break_off_an_upload(demo.url, client.cookies)
    finish = time.monotonic() + 120
    while not demo.uploads and time.monotonic() < finish:
        time.sleep(0.1)
    assert demo.uploads
    while demo.uploads and time.monotonic() < finish:
        time.sleep(0.5)
    assert demo.uploads == []
    # The page's own pictures are still there.
    icons = re.findall(r'"url":\s*"([^"]*example-\d[^"]*)"', json.dumps(client.config))
    assert len(set(icons)) == 3
    for url in icons:
        assert httpx.get(url, cookies=client.cookies).content.startswith(b"\x89PNG")
    assert choose(client, picture)

    demo.process.send_signal(signal.SIGTERM)
    demo.process.wait(120)
    assert list(demo.temporary.glob("vlmoe-demo-*")) == []
    assert "Traceback" not in demo.output


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        ("me", "USER:PASSWORD_FILE"),
        (":file", "USER:PASSWORD_FILE"),
        ("me:/nowhere/password", "cannot read the password file /nowhere/password"),
        ("me:{empty}", "first line of .* is empty"),
    ],
)
def test_password_files(tmp_path, auth, words):
    empty = tmp_path / "empty"
    empty.write_text("\nsecret\n")
    with pytest.raises(UserError, match=words):
        serving.read_auth(auth.format(empty=empty))
    good = tmp_path / "good"
    good.write_text("secret\nsecond line\n")
    assert serving.read_auth(f"me:{good}") == ("me", "secret")
    good.write_text("secret\n", encoding="utf-8-sig")  # as Windows' Notepad saves it
    assert serving.read_auth(f"me:{good}") == ("me", "secret")
    assert serving.read_auth(None) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--adapter", "/nowhere/run"], "there is no adapter at /nowhere/run"),
        (["--adapter", "none", "--queue", "0", "--time-limit", "-1"], "--queue must be above 0"),
        (["--adapter", "none", "--max-client-mb", "1"], "--max-client-mb must be 13 at least"),
        (
            ["--adapter", "none", "--allowed-host", "http://x"],
            "--allowed-host 'http://x' is no host",
        ),
        (["--adapter", "none", "--allowed-host", "*.x.org"], "'\\*.x.org' is no host"),
        (["--adapter", "none", "--read-timeout", "nan"], "--read-timeout must be above 0 and at"),
        (["--adapter", "none", "--read-timeout", "inf"], "and at most 1,000,000"),
        (["--adapter", "none", "--queue", "10000000"], "--queue must be above 0 and at most"),
        (["--adapter", "none", "--port", "99999"], "--port must lie between 1 and 65535"),
        (["--adapter", "none", "--device", "cuda:99"], "no device"),
    ],
)
def test_mistakes_are_found_before_the_page_opens(flags, words):
    with pytest.raises(UserError, match=words):
        serving.make_engine(serving.parse(flags, None))


def test_a_datasets_broken_picture_is_told_without_its_place(tmp_path, monkeypatch):
    class Broken:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, at: int):
            raise ImageError("not a picture", "/secret/scene.png")

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    engine = Engine("tiny", {}, device=torch.device("cpu"), limits=Limits())
    page = load_app().build(engine, Broken(), write_examples(tmp_path))
    browse = [
        one.fn
        for one in page.fns.values()
        if [type(block).__name__ for block in one.inputs] == ["Number"]
    ]
    assert len(browse) == 4
    for show in browse:
        with pytest.raises(Exception, match="picture of question 1 cannot be used") as caught:
            show(1)
        assert "secret" not in str(caught.value)


def test_what_cannot_be_loaded_ends_it(tmp_path, monkeypatch, capsys):
    """The page is open by then; it is closed, and nothing stays behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # set by the demo, and to be put back
    with pytest.raises(UserError, match="no model directory at /nowhere/model"):
        command("demo").main(["--adapter", "none", "--model", "/nowhere/model", "--device", "cpu"])
    (url,) = re.findall(r"vlmoe demo on (\S+)", capsys.readouterr().out)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
    assert list(tmp_path.iterdir()) == []
