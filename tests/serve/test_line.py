"""One thing at a time, in the order of arrival; who leaves holds neither a place nor memory."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from contextlib import aclosing

import pytest

from vlmoe.demo.guard.asgi import Refused
from vlmoe.errors import UserError
from vlmoe.serve.faults import Fault
from vlmoe.serve.line import Line


def refusal(error: Exception) -> Refused | None:
    return Fault(str(error)) if isinstance(error, UserError) else None


async def never() -> None:
    await asyncio.sleep(3600)


async def all_of(line: Line, work, gone=never) -> list:
    async with aclosing(line.steps(work, gone)) as steps:
        return [step async for step in steps]


class Slow:
    """Work that waits for a sign before its second step."""

    def __init__(self):
        self.sign, self.begun, self.threads = threading.Event(), threading.Event(), set()

    def __call__(self):
        self.begun.set()
        self.threads.add(threading.current_thread())
        yield "begun"
        self.sign.wait(30)
        yield "done"


def test_in_the_order_of_arrival_by_one_thread():
    line, slow, order = Line(9, refusal), Slow(), []

    def quick(name):
        def work():
            order.append(name)
            slow.threads.add(threading.current_thread())
            yield name

        return work

    async def ask():
        tasks = [asyncio.ensure_future(all_of(line, slow))]
        for name in "abc":
            await asyncio.sleep(0.01)
            tasks.append(asyncio.ensure_future(all_of(line, quick(name))))
        await asyncio.sleep(0.1)
        assert (line.standing, order) == (4, [])
        slow.sign.set()
        assert await asyncio.gather(*tasks) == [["begun", "done"], ["a"], ["b"], ["c"]]
        await asyncio.sleep(0.1)
        assert line.standing == 0

    asyncio.run(ask())
    assert order == ["a", "b", "c"]
    assert len(slow.threads) == 1


def test_errors_reach_who_waits():
    line = Line(0, refusal)

    def wrong(error):
        def work():
            yield 1
            raise error

        return work

    async def ask():
        with pytest.raises(Fault, match="his own"):
            await all_of(line, wrong(UserError("his own")))
        with pytest.raises(KeyError):
            await all_of(line, wrong(KeyError("ours")))
        assert await all_of(line, lambda: iter([1, 2])) == [1, 2]

    asyncio.run(ask())


def test_a_full_line_turns_away():
    line, slow = Line(1, refusal), Slow()

    async def ask():
        waiting = [asyncio.ensure_future(all_of(line, slow)) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(Fault) as caught:
            await all_of(line, slow)
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        slow.sign.set()
        assert await asyncio.gather(*waiting) == [["begun", "done"]] * 2

    asyncio.run(ask())


def test_who_leaves_holds_nothing():
    """Neither a place in the line nor what was sent, though the work before it goes on."""

    class Picture:
        pass

    line, slow = Line(2, refusal), Slow()

    async def ask():
        first = asyncio.ensure_future(all_of(line, slow))
        while not slow.begun.is_set():
            await asyncio.sleep(0.01)
        sent = []
        for _ in range(20):
            picture = Picture()
            sent.append(weakref.ref(picture))
            hung_up = asyncio.Event()
            waiting = asyncio.ensure_future(
                all_of(line, lambda picture=picture: iter([picture]), hung_up.wait)
            )
            del picture
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert line.standing == 2
            hung_up.set()
            with pytest.raises(Refused, match="hung up"):
                await waiting
            assert line.standing == 1
        del waiting
        await asyncio.sleep(0.05)
        assert [one() for one in sent[:-1]] == [None] * 19
        slow.sign.set()
        assert await first == ["begun", "done"]

    asyncio.run(ask())


def test_closed_it_ends_after_the_next_step():
    line = Line(1, refusal)
    steps = []

    def endless():
        while True:
            steps.append(1)
            time.sleep(0.01)
            yield 1

    async def ask():
        waiting = asyncio.ensure_future(all_of(line, endless))
        await asyncio.sleep(0.2)
        line.close()
        with pytest.raises(Fault, match="is being stopped"):
            await waiting
        seen = len(steps)
        await asyncio.sleep(0.2)
        assert len(steps) == seen

    asyncio.run(ask())
