"""A turn of a conversation: what a user says, and what the model said to it."""

from __future__ import annotations

from dataclasses import dataclass

PICTURE = "<image>"
"""The place of a picture in what a user says, whatever a base itself writes there."""


@dataclass(frozen=True)
class Turn:
    """What a user says, ``PICTURE`` where a picture stands, and what the model said to it.

    ``answer`` is empty where the model has said nothing yet. The first turn of a conversation may
    have what stands above it all, ``system``.
    """

    question: str
    answer: str = ""
    system: str = ""
