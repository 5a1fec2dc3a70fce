"""Uploads go in time, the page's own files stay, and a request is only so large."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.demo.conftest import NEEDS
from vlmoe.demo.uploads import BodyLimit, private_uploads, removed_in_time

exceptions = pytest.importorskip("starlette.exceptions", reason=NEEDS)


def test_what_is_old_goes_and_what_is_ours_stays(tmp_path):
    ours = tmp_path / "example.png"
    ours.touch()
    with removed_in_time(tmp_path, 0.3):
        (tmp_path / "hash").mkdir()
        sent = tmp_path / "hash" / "sent.png"
        sent.touch()
        finish = time.monotonic() + 60
        while sent.exists() and time.monotonic() < finish:
            time.sleep(0.05)
        assert not sent.exists()
    assert ours.exists()


def test_what_is_used_stays(tmp_path):
    with removed_in_time(tmp_path, 3600):
        sent = tmp_path / "sent.png"
        sent.touch()
    assert sent.exists()


def test_the_folder_is_ours_alone_and_goes_with_us():
    with private_uploads() as folder:
        (folder / "picture.png").touch()
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


@pytest.mark.parametrize(("pieces", "taken"), [([4, 6], True), ([4, 7], False), ([11], False)])
def test_bodies(pieces, taken):
    left = [{"type": "http.request", "body": bytes(size)} for size in pieces]

    async def receive():
        return left.pop(0)

    async def app(scope, receive, send):
        for _ in pieces:
            await receive()

    def call(kind: str) -> None:
        asyncio.run(BodyLimit(app, most=10)({"type": kind}, receive, receive))

    if taken:
        call("http")
    else:
        with pytest.raises(exceptions.HTTPException) as caught:
            call("http")
        assert caught.value.status_code == 413
