"""Why one record cannot be used."""

from __future__ import annotations


class Fault(Exception):
    """What is wrong with a record, in the same words for every record with this fault.

    Args:
        reason: the words, so that they can be counted.
        detail: what is this record's own.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail
