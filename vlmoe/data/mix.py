"""Several prepared datasets read as one, and the shares they have in training."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import overload

from vlmoe.data.dataset import ExampleDataset, load_split, read_manifest
from vlmoe.data.example import Example
from vlmoe.data.lazy import Lazy
from vlmoe.errors import UserError

PROPORTIONAL = "proportional"
EQUAL = "equal"


class Mixture(Lazy):
    """The examples of one or several datasets, one dataset after the other.

    Args:
        parts: the datasets by name; every example carries the name of its own.
    """

    def __init__(self, parts: Mapping[str, ExampleDataset]):
        self.parts = dict(parts)
        self._names = list(self.parts)
        self._ends = list(accumulate(self.sizes))

    @property
    def sizes(self) -> list[int]:
        """Questions in each part."""
        return [len(part) for part in self.parts.values()]

    @property
    def categories(self) -> list[str]:
        """Every category there is, sorted."""
        return sorted({name for part in self.parts.values() for name in part.categories})

    @property
    def answers(self) -> list[int]:
        """The index of every right option, in order."""
        return [answer for part in self.parts.values() for answer in part.answers]

    @property
    def labelled(self) -> list[bool]:
        """Of every question, in order, whether its answer is known."""
        return [known for part in self.parts.values() for known in part.labelled]

    @property
    def image_keys(self) -> list[tuple[str, str] | None]:
        """The same for every question of one dataset about the same picture; None without one."""
        return [
            None if key is None else (name, key)
            for name, part in self.parts.items()
            for key in part.image_keys
        ]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Mixture: ...
    def __getitem__(self, index: int | slice) -> Example | Mixture:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        name, part, at = self._place(index)
        return replace(part[at], dataset=name)

    def text(self, index: int) -> Example:
        """The example without its picture; nothing is decoded."""
        name, part, at = self._place(index)
        return replace(part.text(at), dataset=name)

    def image_key(self, index: int) -> str | None:
        """The same text for every question of one dataset about the same picture."""
        _, part, at = self._place(index)
        return part.image_key(at)

    def select(self, indices: Iterable[int]) -> Mixture:
        """The examples at these indices, which must rise; parts stay, even empty ones."""
        chosen: dict[str, list[int]] = {name: [] for name in self._names}
        last = -1
        for index in indices:
            if index <= last:
                raise ValueError("indices of a mixture's selection must rise")
            name, _, at = self._place(index)
            chosen[name].append(at)
            last = index
        return Mixture({name: part.select(chosen[name]) for name, part in self.parts.items()})

    def _place(self, index: int) -> tuple[str, ExampleDataset, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        at = bisect_right(self._ends, index)
        name = self._names[at]
        return name, self.parts[name], index - (self._ends[at - 1] if at else 0)


def load_mixture(folders: Mapping[str, Path], split: str, *, everywhere: bool = True) -> Mixture:
    """One split of several datasets.

    Args:
        folders: of each dataset, by name; see ``registry.locate_all``.
        split: which one.
        everywhere: every dataset must have it; else those that lack it are passed over.

    Raises:
        UserError: a folder holds no prepared dataset, or a split is missing.
    """
    have = {name: split in read_manifest(folder)["splits"] for name, folder in folders.items()}
    if everywhere or not any(have.values()):
        have = dict.fromkeys(have, True)  # opening it says which splits there are
    return Mixture({name: load_split(folders[name], split) for name in folders if have[name]})


def picture_keys(examples: Sequence[Example]) -> Sequence[Hashable]:
    """The same for every question about the same picture; None without one.

    Of examples in memory, only the very same object counts as the same picture.
    """
    if isinstance(examples, Lazy):
        return examples.image_keys
    return [None if example.image is None else id(example.image) for example in examples]


def draw(examples: Mixture, count: int, seed: int) -> Mixture:
    """``count`` of the examples, drawn by the seed and kept in order; all of them for 0."""
    if count == 0 or count >= len(examples):
        return examples
    return examples.select(sorted(random.Random(seed).sample(range(len(examples)), count)))


def shares(mix: str, sizes: Sequence[int]) -> list[Fraction]:
    """The share of each part in every training step; they sum to 1.

    Args:
        mix: ``proportional`` to the sizes, ``equal``, or a positive number for each part,
            separated by commas.
        sizes: questions in each part.

    Raises:
        UserError: another word, a number that is not positive, or not as many as parts.
    """
    if mix == PROPORTIONAL:
        numbers = [Fraction(size) for size in sizes]
    elif mix == EQUAL:
        numbers = [Fraction(1) for _ in sizes]
    else:
        try:
            numbers = [Fraction(number) for number in mix.split(",")]
        except (ValueError, ZeroDivisionError):
            raise UserError(
                f"mix must be {PROPORTIONAL}, {EQUAL}, or numbers such as 0.3,0.7, not {mix!r}"
            ) from None
        if min(numbers) <= 0:
            raise UserError(f"the numbers of mix must be above 0, got {mix}")
        if len(numbers) != len(sizes):
            raise UserError(f"mix has {len(numbers)} numbers for {len(sizes)} datasets: {mix}")
    return [number / sum(numbers) for number in numbers]
