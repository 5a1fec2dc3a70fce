"""Files that visitors send: whose each is, how much there may be of them, and for how long."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PAGE = "the page"
APIECE = 8192  # what a file and its folder take on a disk, however little is in it
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Who:
    """Who asks for a file.

    Attributes:
        client: address, as limits count it.
        visitor: the browser's cookie, if it has one.
        user: the name logged in with, if any.
        session: the window, or the program's session; None where a request has no such thing.
    """

    client: str = "unknown"
    visitor: str | None = None
    user: str | None = None
    session: str | None = None


@dataclass
class Stored:
    """A file that was sent.

    Attributes:
        size: bytes that it takes.
        sender: who sent it; whoever uses it must have the same cookie and the same name.
        session: whose it is; that of its first use, or None before that.
        visitor: the cookie of its first use, for what was sent without one.
    """

    path: str
    size: int
    sender: Who
    used: float
    claimed: bool = False
    session: str | None = None
    visitor: str | None = None


class Full(Exception):
    """There is no room for another file."""


@dataclass
class Reserved:
    """Room for files of a request that is still being read."""

    sender: Who
    left: int


class Store:
    """A folder with a list of its own of what lies in it.

    A path is one of ours if it stands in the list, letter by letter: a path from outside is
    compared, and nothing on the disk is looked at for one that is not. Each file lies in a folder
    with a name that cannot be guessed, so that a path is also a key.

    Args:
        folder: where; it must be ours alone.
        most: bytes in all, those that are still being received among them.
        each: bytes for one address; of its own files the oldest go first.
        keep: seconds after its last use that a file is kept.
        apiece: bytes that each file counts for beside what is in it.
        clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most: int = 200_000_000,
        each: int = 50_000_000,
        keep: float = 600,
        apiece: int = APIECE,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = Path(os.path.realpath(folder))
        self.most, self.each, self.keep, self.clock = most, min(each, most), keep, clock
        self.apiece = apiece
        self._files: OrderedDict[str, Stored] = OrderedDict()  # the one used longest ago first
        self._own: set[str] = set()
        self._awaited: dict[str, int] = {}
        self._lock = threading.RLock()

    def own(self, path: Path) -> None:
        """A file of the page's, which everybody may have and which stays."""
        self._own.add(os.path.realpath(path))

    @contextmanager
    def reserve(self, sender: Who, size: int, files: int = 1) -> Iterator[Reserved]:
        """Room for ``size`` bytes in so many files, as long as the block lasts. Raises ``Full``."""
        size += files * self.apiece
        with self._lock:
            self._make_room(sender, size)
            self._awaited[sender.client] = self._awaited.get(sender.client, 0) + size
        reserved = Reserved(sender, size)
        try:
            yield reserved
        finally:
            with self._lock:
                self._give_back(sender.client, reserved.left)

    def put(self, reserved: Reserved, name: str, content: BinaryIO, size: int) -> str:
        """Write a file into the room that was reserved; its path. Raises ``Full``."""
        size += self.apiece
        if size > reserved.left:
            raise Full
        folder = self.folder / f"upload-{secrets.token_urlsafe(32)}"
        folder.mkdir(mode=0o700)
        path = folder / plain_name(name)
        try:
            with path.open("xb") as file:
                shutil.copyfileobj(content, file)
        except OSError as error:  # the disk itself is full
            shutil.rmtree(folder, ignore_errors=True)
            raise Full from error
        with self._lock:
            reserved.left -= size
            self._give_back(reserved.sender.client, size)
            self._files[str(path)] = Stored(str(path), size, reserved.sender, self.clock())
        return str(path)

    def keep_for_all(self, name: str, content: BinaryIO, size: int) -> str:
        """A picture that the page shows; everybody may have it, for a time. Raises ``Full``."""
        with self.reserve(Who(client=PAGE), size) as reserved:
            return self.put(reserved, name, content, size)

    def find(self, path: object, who: Who, *, use: bool = False) -> Path | None:
        """The file, if it is the page's own or the asker's; None for whatever other reason.

        Args:
            path: as it was sent; may be anything.
            who: asks for it.
            use: whether it becomes that session's own; else it is only shown to its browser.
        """
        if not isinstance(path, str):
            return None
        with self._lock:
            if path not in self._own and not self._may(self._files.get(path), who, use):
                return None
            if (stored := self._files.get(path)) is not None:
                stored.used = self.clock()
                self._files.move_to_end(path)
        # It is ours: now it may be looked at. A link in its place would lead elsewhere.
        if os.path.realpath(path) != path or not os.path.isfile(path):
            return None
        if path not in self._own:
            with suppress(OSError):
                os.utime(path)  # what removes old files goes by that
        return Path(path)

    @property
    def size(self) -> int:
        """Bytes that are taken: files, and what is being received."""
        with self._lock:
            return sum(one.size for one in self._files.values()) + sum(self._awaited.values())

    def _may(self, stored: Stored | None, who: Who, use: bool) -> bool:
        if stored is None:
            return False
        sender = stored.sender
        if sender.client == PAGE:
            return True
        if sender.user != who.user or sender.visitor not in (None, who.visitor):
            return False
        if stored.claimed:
            return stored.visitor == who.visitor and (not use or stored.session == who.session)
        if use:
            stored.claimed, stored.session, stored.visitor = True, who.session, who.visitor
        return True

    def _make_room(self, sender: Who, size: int) -> None:
        """Forget what is too old, then this sender's oldest. Raises ``Full`` after that."""
        now = self.clock()
        for stored in list(self._files.values()):
            if now - stored.used > self.keep:
                self._remove(stored)
        own = [one for one in self._files.values() if one.sender.client == sender.client]
        taken = sum(one.size for one in own) + self._awaited.get(sender.client, 0)
        in_all = self.size
        for stored in own:
            if taken + size <= self.each and in_all + size <= self.most:
                break
            self._remove(stored)
            taken, in_all = taken - stored.size, in_all - stored.size
        if taken + size > self.each or in_all + size > self.most:
            raise Full

    def _remove(self, stored: Stored) -> None:
        self._files.pop(stored.path, None)
        with suppress(OSError):
            os.unlink(stored.path)
        with suppress(OSError):
            os.rmdir(os.path.dirname(stored.path))

    def _give_back(self, client: str, size: int) -> None:
        left = self._awaited.get(client, 0) - size
        if left > 0:
            self._awaited[client] = left
        else:
            self._awaited.pop(client, None)


def plain_name(name: str) -> str:
    """The last part of a file's name, in plain letters, with its ending."""
    last = _UNUSUAL.sub("-", name.replace("\\", "/").rpartition("/")[2]).strip(".-")
    stem, dot, ending = last.rpartition(".")
    return f"{(stem or 'file')[:80]}{dot}{ending[:10]}" if dot else (last[:80] or "file")
