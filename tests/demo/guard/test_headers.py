"""The policy of every answer, and a page's own scripts by their digests."""

from __future__ import annotations

import base64
import hashlib

import pytest

from tests.demo.conftest import NEEDS
from tests.demo.guard.asgi import Inner, ask, request
from vlmoe.demo.guard.headers import SafeHeaders

pytest.importorskip("starlette", reason=NEEDS)


def test_every_answer_has_them():
    headers = ask(SafeHeaders(Inner()), request()).headers
    policy = headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe-eval" not in policy


def test_a_pages_scripts_and_no_others():
    page = b'<script src="/x.js"></script><script type="module">one()</script>' + b"x" * 10
    inner = Inner(content=page, kind=b"text/html; charset=utf-8")
    scope = request(headers={"accept": "text/html", "accept-encoding": "br"})
    answer = ask(SafeHeaders(inner, scripts="'unsafe-eval'"), scope)
    assert answer.body == page
    digest = base64.b64encode(hashlib.sha256(b"one()").digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert f"script-src 'self' 'sha256-{digest}' 'unsafe-eval';" in policy
    assert b"accept-encoding" not in dict(inner.scopes[0]["headers"])
