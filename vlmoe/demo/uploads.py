"""What visitors send lies in a folder of our own, for a while."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def private_uploads() -> Iterator[Path]:
    """A folder of our own for what Gradio keeps on disk; it goes when we go."""
    # As KeyboardInterrupt does, a polite end must reach the `with`.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        with tempfile.TemporaryDirectory(prefix="vlmoe-demo-") as folder:
            folder = os.path.realpath(folder)  # as paths are compared with
            os.environ["GRADIO_TEMP_DIR"] = folder
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def removed_in_time(folder: Path, seconds: float) -> Iterator[None]:
    """Remove files so long after their last use; what is there already stays.

    Gradio's own ``delete_cache`` would take the page's pictures along, and would leave uploads that
    were broken off.
    """
    ours = set(_files(folder))
    done = threading.Event()

    def watch() -> None:
        while not done.wait(min(30, seconds)):
            for file in _files(folder):
                # A visitor may take it away meanwhile: another upload of it replaces the file.
                with suppress(FileNotFoundError):
                    if file not in ours and time.time() - file.stat().st_ctime > seconds:
                        file.unlink()

    watcher = threading.Thread(target=watch, daemon=True, name="removes uploads")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
