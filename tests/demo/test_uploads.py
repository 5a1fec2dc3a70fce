"""Uploads go in time, the page's own files stay."""

from __future__ import annotations

import time

from vlmoe.demo.uploads import private_uploads, removed_in_time


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
