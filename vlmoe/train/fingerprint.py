"""A checksum of what a run trains on, by which a resumed run knows its data again."""

from __future__ import annotations

import hashlib

from vlmoe.data.mix import Mixture
from vlmoe.files import to_json


def fingerprint(examples: Mixture) -> str:
    """SHA-256 of every question in order: its text, options, answer and picture, and its dataset.

    Names and places of the datasets are not in it, so they may be moved; pictures count by
    ``image_key``: embedded ones by their bytes, files by their names.
    """
    digest = hashlib.sha256()
    for part in examples.parts.values():
        digest.update(f"{len(part)} questions\n".encode())
        for at in range(len(part)):
            one = part.text(at)
            row = [one.id, one.question, one.choices, one.answer, part.image_key(at)]
            digest.update(to_json(row).encode() + b"\n")
    return digest.hexdigest()
