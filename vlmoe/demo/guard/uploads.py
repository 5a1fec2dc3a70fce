"""The two routes of uploads: files come in here, and go out to who sent them."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from pathlib import Path

from vlmoe.demo.guard.asgi import (
    App,
    Receive,
    Refused,
    Scope,
    Send,
    address,
    answer,
    header,
)
from vlmoe.demo.guard.bodies import declared, form
from vlmoe.demo.guard.store import Full, Store, Who
from vlmoe.demo.guard.visitors import visitor

MOST_FILES = 4
SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif")


class Uploads:
    """Takes files as a form with ``files``, answers with their paths, and shows them again.

    Args:
        store: where they are kept.
        most: bytes of one file; a request may hold that and what surrounds it.
        request: bytes of a request whose length is not said.
        take: path where files are posted.
        show: what stands before a file's path where it is fetched.
        progress: path where a page asks how far an upload is; it is told to wait for its end.
        user: the name that a request belongs to, or None.
    """

    def __init__(
        self,
        app: App,
        store: Store,
        *,
        most: int,
        request: int,
        take: str,
        show: str,
        progress: str,
        user: Callable[[Scope], str | None] = lambda _: None,
    ):
        self.app, self.store, self.most, self.request = app, store, most, request
        self.take, self.show, self.progress, self.user = take, show, progress, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self.take and scope["method"] == "POST":
            await answer(send, 200, await self._taken(scope, receive))
        elif scope["type"] == "http" and scope["path"].startswith(self.show):
            await self._shown(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == self.progress:
            events = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": events})
            await send({"type": "http.response.body", "body": b'data: {"msg": "done"}\n\n'})
        else:
            await self.app(scope, receive, send)

    def _who(self, scope: Scope) -> Who:
        return Who(address(scope), visitor(scope), self.user(scope))

    async def _taken(self, scope: Scope, receive: Receive) -> list[str]:
        import anyio.to_thread
        from starlette.datastructures import UploadFile  # Starlette comes with Gradio

        kind = (header(scope, "content-type") or "").lower()
        if not kind.startswith("multipart/form-data"):
            raise Refused(400, "Files are taken as multipart/form-data.")
        paths = []
        try:
            size = declared(scope) or self.request
            with self.store.reserve(self._who(scope), size, MOST_FILES) as room:
                bounds = {"max_files": MOST_FILES, "max_fields": MOST_FILES}
                async with form(scope, receive, **bounds) as sent:
                    files = [one for one in sent.getlist("files") if isinstance(one, UploadFile)]
                    if not files:
                        raise Refused(400, "There is no file in the form's field files.")
                    if any((one.size or 0) > self.most for one in files):
                        raise Refused(413, f"a file may hold {self.most:,} bytes at most")
                    for one in files:
                        name = one.filename or ""
                        size = one.size or 0
                        paths.append(
                            await anyio.to_thread.run_sync(
                                self.store.put, room, name, one.file, size
                            )
                        )
        except Full:
            raise Refused(507, "There is no room for uploads now.", after=60) from None
        return paths

    async def _shown(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.responses import FileResponse

        path = scope["path"].removeprefix(self.show)
        found: Path | None = self.store.find(path, self._who(scope))
        if found is None:
            raise Refused(404, "There is no such file among your uploads.")
        kind, _ = mimetypes.guess_type(found.name)
        # What a browser could run in our name is saved, never shown.
        shown = kind in SHOWN
        response = FileResponse(
            found,
            media_type=kind if shown else "application/octet-stream",
            filename=found.name,
            content_disposition_type="inline" if shown else "attachment",
            headers={"cache-control": "private, no-store"},
        )
        await response(scope, receive, send)
