"""Token sequences that begin alike -> rows in which what they share stands once.

Sequences about one picture form a tree: the picture is in its root, every question is a branch.
Under causal attention a token depends on nothing but the way from the root to it. So the tree in
depth-first order, positions counted along each way, and a mask that lets every token see its own
way give each token exactly the state that it has in a sequence of its own:

    token t sees token s    <=>    s <= t < seen_until[s]

A sequence alone is a tree without branches, for which this is the usual causal mask.

The tokens of two pictures are the same tokens. So that no sequence shares another one's picture,
each picture is a number of its own while trees grow (``Pictures``).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple

import torch
from torch import Tensor


class Tree:
    """Sequences as one run of tokens, in depth-first order.

    Attributes:
        key: of the sequences that may share tokens.
        ids: the tokens.
        positions: of each token, how many stand before it on its way from the root.
        seen_until: of each token, where the tokens end that see it.
        uses: of each token, how many sequences it belongs to.
    """

    def __init__(self, key: Hashable):
        self.key = key
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.seen_until: list[int] = []
        self.uses: list[int] = []
        self._path: list[int] = []

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def branches(self) -> bool:
        """Whether the usual causal mask would be wrong."""
        return any(end != len(self) for end in self.seen_until)

    def new_tokens(self, ids: Sequence[int]) -> int:
        """By how many tokens ``add`` would lengthen it."""
        return len(ids) - self._shared(ids)

    def add(self, ids: Sequence[int]) -> list[int]:
        """Take in a sequence; it shares what it begins with alike with the one before it.

        Returns:
            Where each of its tokens stands.
        """
        shared = self._shared(ids)
        end = len(self) + len(ids) - shared
        self._path = [*self._path[:shared], *range(len(self), end)]
        self.ids += ids[shared:]
        self.positions += range(shared, len(ids))
        self.seen_until += [0] * (len(ids) - shared)
        self.uses += [0] * (len(ids) - shared)
        for at in self._path:
            self.seen_until[at] = end
            self.uses[at] += 1
        return self._path

    def _shared(self, ids: Sequence[int]) -> int:
        pairs = zip(self._path, ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: self.ids[pair[0]] == pair[1], pairs))


class Pictures(NamedTuple):
    """The pictures of a batch, as sequences and rows hold them.

    Attributes:
        token: what stands for a part of any picture; None where there are none.
        counts: of such tokens in each picture.
    """

    token: int | None
    counts: Sequence[int]

    def marked(self, ids: Sequence[int], which: Sequence[int]) -> list[int]:
        """A sequence with ``-1 - p`` for every token of picture p.

        Args:
            ids: the tokens.
            which: pictures, in the order of their places.
        """
        marks = [-1 - picture for picture in which for _ in range(self.counts[picture])]
        mark = iter(marks)
        if sum(token == self.token for token in ids) != len(marks):
            raise ValueError(f"{len(marks)} tokens of pictures have no place in the sequence")
        return [next(mark) if token == self.token else token for token in ids]

    def placed(
        self, tensors: dict[str, Tensor], which: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Rows of marked sequences as the model takes them.

        Args:
            tensors: of ``pack``.
            which: the pictures of every sequence.

        Returns:
            The rows with ``token`` in the place of marks; and, if there are pictures,
            ``image_at`` (image tokens,), where they stand in the flattened rows; ``feature_of``
            (image tokens,), for each of them which row it takes of all pictures' features, one
            picture after the other; and ``picture_uses`` (pictures,), how many sequences are about
            each (``with_pixels``: about each part).
        """
        if self.token is None or not self.counts:
            return tensors
        ids = tensors["input_ids"]
        marks = (-1 - ids[ids < 0]).tolist()
        first = [0, *accumulate(self.counts)]
        features: list[int] = []
        while len(features) < len(marks):
            picture = marks[len(features)]
            features += range(first[picture], first[picture + 1])
        uses = torch.tensor([picture for pictures in which for picture in pictures])
        return {
            **tensors,
            "input_ids": ids.masked_fill(ids < 0, self.token),
            "image_at": (ids < 0).flatten().nonzero().flatten(),
            "feature_of": torch.tensor(features),
            "picture_uses": torch.bincount(uses, minlength=len(self.counts)),
        }


def with_pixels(batch: dict[str, Tensor], pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of ``Pictures.placed`` with what ``Reader.pixels`` made of the pictures.

    Returns:
        Where pictures are of several parts, ``picture_uses`` is (parts,), of all of them: each part
        is equally many tokens to the vision tower.
    """
    pixels = dict(pixels)
    parts = pixels.pop("picture_parts", None)
    if parts is not None:
        batch = {**batch, "picture_uses": batch["picture_uses"].repeat_interleave(parts)}
    return {**batch, **pixels}


class Packed(NamedTuple):
    """Rows of trees. R rows of S tokens.

    Attributes:
        tensors: ``input_ids``, ``attention_mask`` (0 on padding), ``position_ids`` and ``uses`` (0
            on padding), all (R, S); if any tree branches, ``seen_until`` (R, S), without which the
            usual causal mask is right. Padding stands at the end and sees itself alone.
        paths: of each sequence, where its tokens stand in the flattened rows.
        trees: in the order in which they stand there.
    """

    tensors: dict[str, Tensor]
    paths: list[list[int]]
    trees: list[Tree]


def pack(
    sequences: Sequence[Sequence[int]], keys: Sequence[Hashable], *, pad: int, budget: int
) -> Packed:
    """Put sequences into rows; those of one key share the tokens they begin with.

    A row is as long as the longest tree; where trees branch, short ones stand behind each other.

    Args:
        sequences: tokens of each.
        keys: of each; sequences of different keys share nothing.
        pad: the token for padding.
        budget: a tree that would grow beyond so many tokens is left as it is, and the sequences
            that are still to come start another one. A single longer sequence is not cut.
    """
    trees, places = _grow(sequences, keys, budget)
    rows = _rows(trees)
    width = max(sum(map(len, row)) for row in rows)
    start = {
        id(tree): at * width + sum(map(len, row[:before]))
        for at, row in enumerate(rows)
        for before, tree in enumerate(row)
    }
    tensors = {
        "input_ids": torch.full((len(rows) * width,), pad),
        "attention_mask": torch.zeros(len(rows) * width, dtype=torch.long),
        "position_ids": torch.zeros(len(rows) * width, dtype=torch.long),
        "uses": torch.zeros(len(rows) * width, dtype=torch.long),
        "seen_until": torch.arange(width).repeat(len(rows)) + 1,
    }
    for tree in trees:
        first = start[id(tree)]
        there = slice(first, first + len(tree))
        tensors["input_ids"][there] = torch.tensor(tree.ids)
        tensors["attention_mask"][there] = 1
        tensors["position_ids"][there] = torch.tensor(tree.positions)
        tensors["uses"][there] = torch.tensor(tree.uses)
        tensors["seen_until"][there] = torch.tensor(tree.seen_until) + first % width
    if all(len(row) == 1 and not row[0].branches for row in rows):
        del tensors["seen_until"]
    return Packed(
        {name: tensor.view(len(rows), width) for name, tensor in tensors.items()},
        [[start[id(tree)] + at for at in path] for tree, path in places],
        [tree for row in rows for tree in row],
    )


def _grow(
    sequences: Sequence[Sequence[int]], keys: Sequence[Hashable], budget: int
) -> tuple[list[Tree], list[tuple[Tree, list[int]]]]:
    """The trees, and where each sequence stands: its tree and the places in it."""
    number: dict[Hashable, int] = {}
    for key in keys:
        number.setdefault(key, len(number))
    # Sorted, those that begin alike follow each other, whatever order they came in.
    order = sorted(range(len(sequences)), key=lambda at: (number[keys[at]], sequences[at]))
    trees: list[Tree] = []
    places: dict[int, tuple[Tree, list[int]]] = {}
    for at in order:
        ids, tree = sequences[at], trees[-1] if trees else None
        if not tree or tree.key != keys[at] or len(tree) + tree.new_tokens(ids) > budget:
            tree = Tree(keys[at])
            trees.append(tree)
        places[at] = tree, tree.add(ids)
    return trees, [places[at] for at in range(len(sequences))]


def _rows(trees: list[Tree]) -> list[list[Tree]]:
    """Each tree into the first row with room for it, the longest first (first-fit decreasing).

    Trees without branches get a row each: they need no mask of their own, and are faster so.
    """
    if not any(tree.branches for tree in trees):
        return [[tree] for tree in trees]
    width = max(map(len, trees))
    rows: list[list[Tree]] = []
    for at in sorted(range(len(trees)), key=lambda at: -len(trees[at])):
        tree = trees[at]
        fits = (row for row in rows if sum(map(len, row)) + len(tree) <= width)
        row = next(fits, None)
        if row is None:
            rows.append([tree])
        else:
            row.append(tree)
    return rows
