"""What the server answers: a few routes of OpenAI's API over one engine, as plain ASGI."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from vlmoe.demo.engine import Engine
from vlmoe.demo.guard.asgi import Receive, Refused, Scope, Send, answer, header
from vlmoe.demo.guard.bodies import whole_body
from vlmoe.demo.guard.values import parse
from vlmoe.errors import UserError
from vlmoe.finite import NotFinite
from vlmoe.serve.answers import DONE, Completion, Growing, event, model_card, usage
from vlmoe.serve.asked import Asked, asked
from vlmoe.serve.faults import Fault, told
from vlmoe.serve.line import Line

HEALTH, MODELS, CHAT = "/health", "/v1/models", "/v1/chat/completions"
NOTHING = f"there is nothing here: this server has POST {CHAT}, GET {MODELS} and GET {HEALTH}"
UNKNOWN = "something went wrong; the server's log says what"
STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy is not to collect the pieces
]


@dataclass(frozen=True)
class Step:
    """A step of an answer.

    Attributes:
        new: text that came with it.
        end: empty while it goes on; see ``answers.REASONS``.
        prompt: tokens of what was asked.
        said: tokens of the answer so far.
    """

    new: str
    end: str
    prompt: int
    said: int


class Api:
    """The application; guards stand before it.

    Args:
        engine: answers; it may still be loading.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.line: Line[Step] = Line(engine.limits.waiting, _refusal)
        self.begun = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        method, path = scope["method"].replace("HEAD", "GET"), scope["path"]
        if (method, path) == ("POST", CHAT):
            await self._chat(scope, receive, send)
        elif (method, path) == ("GET", MODELS):
            cards = [model_card(name, self.begun) for name in self.engine.names]
            await answer(send, 200, {"object": "list", "data": cards})
        elif method == "GET" and path.startswith(f"{MODELS}/"):
            name = self._known(path.removeprefix(f"{MODELS}/"))
            await answer(send, 200, model_card(name, self.begun))
        elif (method, path) == ("GET", HEALTH):
            ready = self.engine.ready
            await answer(send, 200 if ready else 503, {"status": "ok" if ready else "loading"})
        else:
            raise Fault(NOTHING, status=404)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({"type": f"{kind}.complete"})
        self.line.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        _check_kind(scope)
        try:
            value = parse(await whole_body(receive))
        except ValueError as error:
            raise Fault(f"the request cannot be used: {error}") from None
        request = asked(value, self.engine.limits)
        del value  # it holds the pictures once more
        self._known(request.model)
        if not self.engine.ready:
            raise Fault(self.engine.status, status=503, after=5)
        work = self.line.steps(lambda: self._answer(request), lambda: _gone(receive))
        async with aclosing(work) as steps:
            await (_stream if request.stream else _whole)(request, steps, send)

    def _known(self, name: str) -> str:
        if name not in self.engine.names:
            raise Fault(
                f"there is no model {name[:100]!r}: choose from {', '.join(self.engine.names)}",
                "model",
                status=404,
                code="model_not_found",
            )
        return name

    def _answer(self, request: Asked) -> Iterator[Step]:
        """The work itself, in the model's thread."""
        pictures = self.engine.limits.decoded_all(request.pictures)
        growing = Growing(request.stop)
        for said, shown in self.engine.ask(
            pictures,
            request.turns,
            request.model,
            places=request.places,
            temperature=request.temperature,
            max_new_tokens=request.max_new_tokens,
            seed=request.seed,
        ):
            new = growing.more(said.text, said.end)
            prompt = shown.batch["attention_mask"].sum()
            yield Step(new, growing.end, int(prompt), len(said.tokens))
            if growing.end:
                return


def _check_kind(scope: Scope) -> None:
    """Raise ``Fault`` for a body that is said to be anything but JSON in UTF-8, as it stands."""
    kind, _, more = (header(scope, "content-type") or "").lower().partition(";")
    charset = more.replace('"', "").replace(" ", "")
    if kind.strip() != "application/json" or charset not in ("", "charset=utf-8"):
        raise Fault("the content-type must be application/json, in UTF-8", status=415)
    if (header(scope, "content-encoding") or "identity").lower() != "identity":
        raise Fault("the body must come as it is, without a content-encoding", status=415)


async def _whole(request: Asked, steps: AsyncGenerator[Step, None], send: Send) -> None:
    completion, text = Completion(request.model), ""
    async for step in steps:
        text += step.new
    await answer(send, 200, completion.whole(text, step.end, usage(step.prompt, step.said)))


async def _stream(request: Asked, steps: AsyncGenerator[Step, None], send: Send) -> None:
    async def tell(content: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": content, "more_body": more})

    completion = Completion(request.model)
    step = await anext(steps)  # what is refused by now is refused with a status of HTTP
    await send({"type": "http.response.start", "status": 200, "headers": STREAM})
    await tell(event(completion.chunk({"role": "assistant", "content": ""})))
    try:
        while True:
            if step.new:
                await tell(event(completion.chunk({"content": step.new})))
            if step.end:
                break
            step = await anext(steps)
    except Exception as error:
        if isinstance(error, Refused):
            await tell(event(told(error)), more=False)
            return
        await tell(event(told(Fault(UNKNOWN, status=500))), more=False)
        raise  # into the log
    await tell(event(completion.chunk({}, step.end)))
    if request.usage:
        await tell(event(completion.count(usage(step.prompt, step.said))))
    await tell(DONE, more=False)


async def _gone(receive: Receive) -> None:
    """Wait until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> Refused | None:
    """What a client is told of it; None if it is a fault of the program."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, NotFinite):
        return Fault(str(error), status=500)
    if isinstance(error, UserError):
        return Fault(str(error))
    if _no_memory(error):
        return Fault("there is not enough memory for this request now", status=503, after=5)
    return None


def _no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
