"""Passwords: who may come in, and how often one may guess."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from vlmoe.demo.guard.asgi import App, Message, Receive, Refused, Scope, Send, address
from vlmoe.demo.guard.bodies import again, form, whole_body

LOG = logging.getLogger(__name__)
FORGET = 900.0  # seconds after the last failure
FIRST_LOCK, LONGEST_LOCK = 15.0, 900.0
LONGEST_NAME_LOCK = 60.0  # from elsewhere the owner of a name must come through
ALLOWED = {"address": 10, "both": 5, "name": 30}


def same_password(user: str, password: str) -> Callable[[str, str], bool]:
    """A check of name and password that takes as long for any name."""

    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    wanted = digest(user), digest(password)

    def check(given_user: str, given_password: str) -> bool:
        right_user = hmac.compare_digest(digest(given_user), wanted[0])
        right_password = hmac.compare_digest(digest(given_password), wanted[1])
        return right_user & right_password

    return check


@dataclass
class Tally:
    """Failures since the last one was forgotten, and until when there is no other try."""

    failures: int = 0
    last: float = 0.0
    locked: float = 0.0


class Attempts:
    """Counts failures by address, by name, and by both; locks what has too many.

    A try is counted before the password is looked at, so that many at once gain nothing. A name
    is locked shortly only, and never for an address that its owner came from before: else
    strangers could shut the owner out.

    Args:
        most: entries that are kept; then the one that failed longest ago goes.
        clock: seconds.
    """

    def __init__(self, most: int = 10_000, clock: Callable[[], float] = time.monotonic):
        self.most, self.clock = most, clock
        self._tallies: OrderedDict[tuple[str, str, str], Tally] = OrderedDict()
        self._owners: OrderedDict[tuple[str, str], None] = OrderedDict()

    def begin(self, where: str, name: str) -> float:
        """Count a try, and return how many seconds its answer is to wait.

        Raises:
            Refused: 429, while there is a lock.
        """
        now = self.clock()
        wait = self._locked(where, name) - now
        if wait > 0:  # nothing is kept of it: whoever is locked cannot push out what is known
            raise Refused(429, "Too many tries: wait before the next one.", after=wait)
        tallies = {kind: self._tally(key, now) for kind, key in self._keys(where, name).items()}
        for kind, tally in tallies.items():
            tally.failures += 1
            tally.last = now
            surplus = tally.failures - ALLOWED[kind]
            if surplus >= 0:
                longest = LONGEST_NAME_LOCK if kind == "name" else LONGEST_LOCK
                tally.locked = now + min(FIRST_LOCK * 2 ** min(surplus, 10), longest)
        return min(0.1 * 2 ** min(tallies["both"].failures, 5), 2.0)

    def succeeded(self, where: str, name: str) -> None:
        """The last try was right: its address has a clean slate, and is the name's own."""
        keys = self._keys(where, name)
        for kind in ("address", "both"):
            self._tallies.pop(keys[kind], None)
        if "name" in keys and (tally := self._tallies.get(keys["name"])):
            tally.failures, tally.locked = tally.failures - 1, 0.0
        self._owners[where, name] = None
        self._owners.move_to_end((where, name))
        if len(self._owners) > self.most:
            self._owners.popitem(last=False)

    def __len__(self) -> int:
        return len(self._tallies)

    def locked(self, where: str, name: str) -> bool:
        """Whether the next try would be refused."""
        return self._locked(where, name) > self.clock()

    def _locked(self, where: str, name: str) -> float:
        """Until when there is no other try."""
        keys = self._keys(where, name).values()
        return max(self._tallies[key].locked if key in self._tallies else 0.0 for key in keys)

    def _keys(self, where: str, name: str) -> dict[str, tuple[str, str, str]]:
        keys = {"address": ("address", where, ""), "both": ("both", where, name)}
        if (where, name) not in self._owners:
            keys["name"] = ("name", "", name)
        return keys

    def _tally(self, key: tuple[str, str, str], now: float) -> Tally:
        tally = self._tallies.pop(key, None)
        if tally is None or now - max(tally.last, tally.locked) > FORGET:
            tally = Tally()
        self._tallies[key] = tally
        while len(self._tallies) > self.most:
            self._tallies.popitem(last=False)
        return tally


class Logins:
    """Slows guesses at passwords down, and logs them.

    Args:
        path: where a form with ``username`` and ``password`` is posted; any answer below 400
            means that they were right.
    """

    def __init__(self, app: App, attempts: Attempts, path: str = "/login"):
        self.app, self.attempts, self.path = app, attempts, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tried = scope["type"] == "http" and scope["method"] == "POST"
        if not (tried and scope["path"].rstrip("/") == self.path):
            await self.app(scope, receive, send)
            return
        body = await whole_body(receive)
        name, where = await _name(scope, body), address(scope)
        delay = self.attempts.begin(where, name)
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status < 400:
                    self.attempts.succeeded(where, name)
                    LOG.warning("login of %r from %s", name, where)
                else:
                    locked = ": locked for a while" if self.attempts.locked(where, name) else ""
                    LOG.warning("wrong login of %r from %s%s", name, where, locked)
                    await asyncio.sleep(delay)
            await send(message)

        await self.app(scope, again(body, receive), noted)


async def _name(scope: Scope, body: bytes) -> str:
    """The name that is tried, as whoever checks it reads it; cut, since it is kept and logged."""

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    async with form(scope, again(body, nothing), max_files=0, max_fields=10) as sent:
        return str(sent.get("username", "")).strip()[:100]


class Members:
    """Lets nobody in who has not logged in, and holds no connection of theirs.

    Args:
        user: the name that a request belongs to, or None.
        open_to_all: paths that one needs to log in; ``/x/`` stands for all below it.
    """

    def __init__(self, app: App, user: Callable[[Scope], str | None], open_to_all: tuple[str, ...]):
        self.app, self.user, self.open_to_all = app, user, open_to_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            free = any(
                path.startswith(one) if one.endswith("/") and one != "/" else path == one
                for one in self.open_to_all
            )
            if not free and self.user(scope) is None:
                raise Refused(401, "Not authenticated")
        await self.app(scope, receive, send)
