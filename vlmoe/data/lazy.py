"""Examples whose pictures are not in memory until they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence

from vlmoe.data.example import Example


class Lazy(Sequence[Example]):
    """Makes an example when it is taken; one that cannot be made raises ``UserError`` then."""

    @property
    @abstractmethod
    def image_keys(self) -> Sequence[Hashable]:
        """The same for every question that is known to be about the same picture; else None."""

    @abstractmethod
    def text(self, index: int) -> Example:
        """The example without its picture; nothing is decoded."""
