"""Guesses are few, the owner is not shut out, and the table stays small."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import SimpleNamespace

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, asked, request
from vlmoe.demo.guard import logins
from vlmoe.demo.guard.asgi import Refused
from vlmoe.demo.guard.logins import Attempts, Logins, Members, same_password

pytest.importorskip("starlette", reason=NEEDS)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attempts(clock) -> Attempts:
    return Attempts(clock=clock)


def guesses(attempts: Attempts, count: int, where: str = "1.1.1.1", name: str = "me") -> int:
    """How many of so many tries are looked at."""
    taken = 0
    for _ in range(count):
        with suppress(Refused):
            attempts.begin(where, name)
            taken += 1
    return taken


def test_few_guesses_and_ever_longer_locks(attempts, clock):
    assert guesses(attempts, 100) == 5
    waits = []
    for _ in range(8):
        with pytest.raises(Refused) as caught:
            attempts.begin("1.1.1.1", "me")
        assert caught.value.status == 429
        waits.append(caught.value.after)
        clock.now += caught.value.after + 0.01
        assert guesses(attempts, 10) == 1
    assert waits == sorted(waits)
    assert waits[0] == logins.FIRST_LOCK
    assert waits[-1] == logins.LONGEST_LOCK
    clock.now += logins.LONGEST_LOCK + logins.FORGET + 1
    assert guesses(attempts, 100) == 5  # all is forgotten


def test_nothing_is_kept_of_refused_tries(clock):
    """Else whoever is locked pushes out what is known of others."""
    attempts = Attempts(most=100, clock=clock)
    for number in range(29):
        attempts.begin(f"3.3.3.{number}", "me")
    guesses(attempts, 10, name="x")
    known = len(attempts)
    assert sum(guesses(attempts, 1, name=f"name {number}") for number in range(1000)) <= 5
    assert len(attempts) <= known + 10
    assert guesses(attempts, 2, where="4.4.4.4") == 1  # the thirtieth try, and no more


def test_other_names_from_the_same_address(attempts):
    assert sum(guesses(attempts, 1, name=f"name {number}") for number in range(100)) == 10


def test_one_name_from_many_addresses(attempts, clock):
    taken = sum(guesses(attempts, 1, where=f"2.2.2.{number}") for number in range(200))
    assert taken == logins.ALLOWED["name"]
    assert guesses(attempts, 1, where="3.3.3.3", name="other") == 1
    clock.now += logins.LONGEST_NAME_LOCK + 0.01  # no lock of a name is longer
    assert guesses(attempts, 1, where="3.3.3.3") == 1


def test_the_owner_comes_in_from_where_he_came_before(attempts):
    attempts.begin("9.9.9.9", "me")
    attempts.succeeded("9.9.9.9", "me")
    assert guesses(attempts, 60, where="1.1.1.1") == 5
    for number in range(200):
        guesses(attempts, 1, where=f"2.2.2.{number}")
    assert guesses(attempts, 1, where="8.8.8.8") == 0
    assert guesses(attempts, 1, where="9.9.9.9") == 1


def test_success_clears(attempts):
    for _ in range(20):
        assert guesses(attempts, 4) == 4
        attempts.succeeded("1.1.1.1", "me")


def test_the_table_is_bounded(clock):
    attempts = Attempts(most=100, clock=clock)
    for number in range(1000):
        guesses(attempts, 1, where=f"10.0.{number // 250}.{number % 250}", name=str(number))
    assert len(attempts) <= 100


URLENCODED = {"content-type": "application/x-www-form-urlencoded"}
LOGIN = request("/login", "POST", headers=URLENCODED)


def form(name: str, password: str = "wrong") -> list[bytes]:
    return [f"username={name}&password={password}".encode()]


def test_many_at_once_gain_nothing(monkeypatch, caplog):
    inner = Inner(status=400)
    guard = Logins(inner, Attempts())

    async def no_delay(seconds):
        delays.append(seconds)

    delays: list[float] = []
    # Its own name for it alone: servers of other tests in this process sleep as well.
    monkeypatch.setattr(logins, "asyncio", SimpleNamespace(sleep=no_delay))

    async def flood():
        return await asyncio.gather(*(asked(guard, LOGIN, form("m%0Ae")) for _ in range(60)))

    with caplog.at_level(logging.WARNING):
        statuses = [answer.status for answer in asyncio.run(flood())]
    assert (statuses.count(400), statuses.count(429)) == (5, 55)
    assert len(inner.bodies) == 5
    assert inner.bodies[0] == form("m%0Ae")[0]
    assert delays == sorted(delays)
    assert delays[-1] >= 1
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1] == r"wrong login of 'm\ne' from 127.0.0.1: locked for a while"
    assert len(lines) == 5


def test_right_ones_are_logged_and_not_slowed(caplog):
    guard = Logins(Inner(), Attempts())
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            assert ask(guard, LOGIN, form("me")).status == 200
    assert "login of 'me' from 127.0.0.1" in caplog.text
    assert ask(guard, request("/other", "POST"), form("me")).status == 200


def test_ipv6_networks_count_as_one():
    guard = Logins(Inner(status=400), Attempts(most=1000))
    guard.attempts.begin("2001:db8::/64", "me")
    for _ in range(4):
        guard.attempts.begin("2001:db8::/64", "me")
    scope = LOGIN | {"client": ("2001:db8::1234", 1)}
    assert ask(guard, scope, form("me")).status == 429


def test_forms_of_browsers():
    """A page sends its form in parts; the name in them is the one that is locked."""
    attempts = Attempts()
    head = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="username"\r\n\r\nme\r\n--x--\r\n'
    guard = Logins(Inner(status=400), attempts)
    for _ in range(5):
        attempts.begin("127.0.0.1", "me")
    assert ask(guard, request("/login", "POST", headers=head), [part]).status == 429
    assert ask(guard, request("/login/", "POST", headers=head), [part]).status == 429
    assert ask(guard, request("/login", "POST", headers=head), [b"no form"]).status == 400


def test_who_is_no_member():
    guard = Members(Inner(), lambda scope: None, ("/", "/login", "/assets/"))
    for path, status in (
        ("/", 200),
        ("/login", 200),
        ("/assets/x.js", 200),
        ("/config", 401),
        ("/api/heartbeat/x", 401),
        ("/assetsx", 401),
    ):
        assert ask(guard, request(path)).status == status
    assert ask(Members(Inner(), lambda scope: "me", ("/",)), request("/config")).status == 200


def test_passwords():
    check = same_password("me", "pass\u00e9")
    assert check("me", "pass\u00e9")
    for name, password in (("me", "pass"), ("you", "pass\u00e9"), ("", ""), ("me", "\ud800")):
        assert not check(name, password)
