"""A picture as it comes in a request: in a ``data:`` URI, and from nowhere else.

A server that fetched addresses or opened paths for its clients would lend them its network and its
disk.
"""

from __future__ import annotations

import base64
import binascii
import re

from vlmoe.serve.faults import Fault

_HEAD = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.IGNORECASE)
_LONGEST_HEAD = 80
_SCHEME = re.compile(r"\s*([a-z][a-z\d+.-]{0,20}):", re.IGNORECASE)


def content_of(url: str, megabytes: int, param: str) -> bytes:
    """The bytes of the file in a URI, not looked at yet.

    What kind of picture it is, the file says; the URI's word for it is not taken.

    Args:
        url: ``data:image/...;base64,...``.
        megabytes: that it may hold.
        param: where the URI stood, for the message.

    Raises:
        Fault: it is something else, too large, or no base64.
    """
    head = _HEAD.match(url[:_LONGEST_HEAD])
    if not head:
        scheme = _SCHEME.match(url[:_LONGEST_HEAD])
        what = f"a {scheme[1].lower()}: address" if scheme else "no address"
        raise Fault(
            f"{param} is {what}: pictures are taken as data:image/...;base64,... only, nothing is "
            "fetched or opened",
            param,
        )
    length = len(url) - head.end()
    if length * 3 // 4 > megabytes * 1_000_000:
        raise Fault(f"{param} holds a file larger than {megabytes} MB: shrink the picture", param)
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Fault(f"{param} is not base64 behind its comma", param) from None
