"""Pictures of a source: each is checked once and stored once, several at a time."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Semaphore
from typing import TYPE_CHECKING, NamedTuple

from vlmoe.data.image import ImageError, load_rgb, measure, read_picture

if TYPE_CHECKING:
    from PIL import Image

# First bytes -> the usual ending of a file's name. It is for people; reading looks at the bytes.
ENDINGS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the source: the file name it is stored under, and its file or bytes.

    Records that share a picture give the same name, and the same source unless the name follows
    from the content (``by_content``): then any file with that content will do.
    """

    name: str
    source: Path | bytes
    by_content: bool = False

    def stored(self) -> Picture:
        """The same picture by name alone, so that nobody holds its bytes any longer."""
        return Picture(self.name, Path(self.name), self.by_content)


def content_name(data: bytes) -> str:
    """A name that follows from the bytes: the same picture met twice is stored once."""
    ending = next((end for start, end in ENDINGS.items() if data.startswith(start)), "")
    return hashlib.sha256(data).hexdigest()[:32] + ending


def pixel_digest(image: Image.Image) -> str:
    """The same for two files, of whatever format, that show the very same pixels."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


class Checked(NamedTuple):
    """What is known of a picture once it was looked at: its fault, or the others.

    Attributes:
        fault: why it cannot be used.
        digest: of its pixels, if they are kept.
        size: height and width.
    """

    fault: str | None = None
    digest: str = ""
    size: tuple[int, int] = (0, 0)


class PictureStore:
    """Takes pictures while their records are still being read, and checks them by the way.

    Threads: Pillow decodes without holding the interpreter's lock, and a process would have to
    be handed the bytes. Few pictures wait at a time, so memory stays small whatever the source.

    Args:
        folder: where pictures go; those that are there already were checked before (a restart).
        workers: pictures checked at a time; None: one for each core.
        digests: keep a digest of each picture's pixels; every picture is decoded for it.
    """

    def __init__(self, folder: Path, workers: int | None = None, *, digests: bool = False):
        self.folder = folder
        self._digests = digests
        folder.mkdir(exist_ok=True)
        workers = workers or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(workers)
        self._room = Semaphore(4 * workers)
        self._sources: dict[str, Path | str] = {}
        self._checked: dict[str, Future[Checked]] = {}

    def __enter__(self) -> PictureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, picture: Picture) -> None:
        """Check and store a picture, soon. Raises ``ValueError`` if another one has its name."""
        source = picture.source
        identity = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else source
        identity = picture.name if picture.by_content else identity
        if self._sources.setdefault(picture.name, identity) != identity:
            raise ValueError(f"two pictures want the name {picture.name!r}")
        if picture.name in self._checked:
            return
        self._room.acquire()
        future = self._pool.submit(self._store, picture)
        future.add_done_callback(lambda _: self._room.release())
        self._checked[picture.name] = future

    def fault(self, name: str) -> str | None:
        """Why a picture cannot be used, or None: it is in the folder. Waits until that is known."""
        return self._checked[name].result().fault

    def digest(self, name: str) -> str:
        """``pixel_digest`` of a picture without fault, if the store was made to keep them."""
        return self._checked[name].result().digest

    def size(self, name: str) -> tuple[int, int]:
        """Height and width of a picture without fault."""
        return self._checked[name].result().size

    def sweep(self) -> None:
        """Remove what an interrupted run stored and this one does not need."""
        for file in self.folder.iterdir():
            if file.name not in self._checked or self.fault(file.name):
                file.unlink()

    def _store(self, picture: Picture) -> Checked:
        """What was found.

        A copy, not a link: editing the source must not change what was prepared. So the stored
        bytes are the very bytes that were checked.
        """
        try:
            data = picture.source
            if isinstance(data, Path):
                data = read_picture(data)
            file = self.folder / picture.name
            stored = file.is_file() and file.read_bytes() == data
            if stored and not self._digests and (size := measure(data)):
                return Checked(size=size)
            image = load_rgb(data)
        except ImageError as error:
            return Checked(error.reason)
        if not stored:
            file.write_bytes(data)
        digest = pixel_digest(image) if self._digests else ""
        return Checked(digest=digest, size=(image.height, image.width))
