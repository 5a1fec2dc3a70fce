"""Pictures of a source: each is checked once and stored once, several at a time."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore

from vlmoe.data.image import ImageError, load_rgb, read_picture

# First bytes -> the usual ending of a file's name. It is for people; reading looks at the bytes.
_ENDINGS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif"}


@dataclass(frozen=True)
class Picture:
    """A picture of the source: the file name it is stored under, and its file or bytes.

    Records that share a picture give the same name and the same source.
    """

    name: str
    source: Path | bytes

    def stored(self) -> Picture:
        """The same picture by name alone, so that nobody holds its bytes any longer."""
        return Picture(self.name, Path(self.name))


def content_name(data: bytes) -> str:
    """A name that follows from the bytes: the same picture met twice is stored once."""
    ending = next((end for start, end in _ENDINGS.items() if data.startswith(start)), "")
    return hashlib.sha256(data).hexdigest()[:32] + ending


class PictureStore:
    """Takes pictures while their records are still being read, and checks them by the way.

    Threads: Pillow decodes without holding the interpreter's lock, and a process would have to
    be handed the bytes. Few pictures wait at a time, so memory stays small whatever the source.

    Args:
        folder: where pictures go; those that are there already were checked before (a restart).
        workers: pictures checked at a time; None: one for each core.
    """

    def __init__(self, folder: Path, workers: int | None = None):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(workers)
        self._room = Semaphore(4 * workers)
        self._sources: dict[str, Path | str] = {}
        self._faults: dict[str, Future[str | None]] = {}

    def __enter__(self) -> PictureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, picture: Picture) -> None:
        """Check and store a picture, soon. Raises ``ValueError`` if another one has its name."""
        source = picture.source
        identity = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else source
        if self._sources.setdefault(picture.name, identity) != identity:
            raise ValueError(f"two pictures want the name {picture.name!r}")
        if picture.name in self._faults:
            return
        self._room.acquire()
        future = self._pool.submit(self._store, picture)
        future.add_done_callback(lambda _: self._room.release())
        self._faults[picture.name] = future

    def fault(self, name: str) -> str | None:
        """Why a picture cannot be used, or None: it is in the folder. Waits until that is known."""
        return self._faults[name].result()

    def sweep(self) -> None:
        """Remove what an interrupted run stored and this one does not need."""
        for file in self.folder.iterdir():
            if file.name not in self._faults or self.fault(file.name):
                file.unlink()

    def _store(self, picture: Picture) -> str | None:
        """A copy, not a link: editing the source must not change what was prepared.

        So the stored bytes are the very bytes that were checked.
        """
        try:
            data = picture.source
            if isinstance(data, Path):
                data = read_picture(data)
            file = self.folder / picture.name
            if file.is_file() and file.read_bytes() == data:
                return None
            load_rgb(data)
        except ImageError as error:
            return error.reason
        file.write_bytes(data)
        return None
