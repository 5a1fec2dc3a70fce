"""The pictures of a batch: each goes in once, however many sequences are about it."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

import torch
from PIL import Image

from vlmoe.models.family import Reader, Size
from vlmoe.models.tree import Pictures


class Shown:
    """Every picture of some sequences once, and which of them each is about.

    Args:
        reader: says which tokens a picture takes.
        images: of each sequence, in the order of their places.

    Attributes:
        pictures: the distinct ones.
        which: of each sequence, in the order of their places.
        sizes: of the same.
    """

    def __init__(self, reader: Reader, images: Sequence[Sequence[Image.Image]]):
        self.pictures: list[Image.Image] = []
        self._known: dict[Hashable, int] = {}
        self.which = [[self._number(picture) for picture in pictures] for pictures in images]
        self.sizes = [[size_of(self.pictures[at]) for at in which] for which in self.which]
        self._tokens = Pictures(
            reader.image_token,
            [
                sum(
                    token == reader.image_token for token in reader.picture_tokens(size_of(picture))
                )
                for picture in self.pictures
            ],
        )

    def _number(self, picture: Image.Image) -> int:
        known = self._known
        if id(picture) not in known:  # the same object needs no look at its pixels
            content = picture.mode, picture.size, _digest(picture)
            if content not in known:
                known[content] = len(self.pictures)
                self.pictures.append(picture)
            known[id(picture)] = known[content]
        return known[id(picture)]

    def marked(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """Each sequence's tokens, with a number of its own for every picture."""
        return [
            self._tokens.marked(row, which) for row, which in zip(rows, self.which, strict=True)
        ]

    def placed(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See ``Pictures.placed``."""
        return self._tokens.placed(tensors, self.which)


def size_of(picture: Image.Image) -> Size:
    """Height and width."""
    return Size(picture.height, picture.width)


def _digest(picture: Image.Image, rows: int = 256) -> bytes:
    """A hash of the pixels, a band of rows at a time: a large picture is not copied whole."""
    digest = hashlib.sha256()
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        digest.update(band.tobytes())
    return digest.digest()
