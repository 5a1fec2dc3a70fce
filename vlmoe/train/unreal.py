"""Tensors without memory, of which small ones still know their values.

What a vision tower does depends on numbers that it is given, such as the sides of a picture. With
``FakeTensorMode`` alone these would be unknown, and a model that looks into them could not be
sent through.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map, tree_map_only

_MOST = 2**27
"""Elements of the largest tensor whose values are kept, if it is made of others."""
_FROM_NOTHING = 2**16
"""The same of one that is made of none: weights are not to be there."""


class Values(TorchDispatchMode):
    """Within it, what follows from known values alone is known: computed beside the shapes.

    Enter it inside of a ``FakeTensorMode``.

    Args:
        unreal: that mode.
    """

    def __init__(self, unreal: FakeTensorMode):
        super().__init__()
        self._unreal = unreal
        self._real: dict[int, Tensor] = {}

    def know(self, real: Tensor) -> Tensor:
        """A tensor without memory that knows the values of this one."""
        with unset_fake_temporarily():
            made = self._unreal.from_tensor(real)
        self._note(made, real)
        return made

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
        if not all(map(self._known, tensors)):
            if function is torch.ops.aten.index.Tensor:
                args = (args[0], self._by_number(args[1]))
            if function._schema.is_mutable:
                self._real.pop(id(args[0]), None)
            return function(*args, **kwargs)
        try:
            made = function(*args, **kwargs)
            sizes = [item.numel() for item in tree_iter(made) if isinstance(item, Tensor)]
        except (DataDependentOutputException, DynamicOutputShapeException):
            made, sizes = None, [0]
        if sum(sizes) > (_MOST if tensors else _FROM_NOTHING):
            return made
        args, kwargs = tree_map(self._reality, (args, kwargs))
        with unset_fake_temporarily():
            real = function(*args, **kwargs)
        if made is None:
            return tree_map_only(Tensor, self.know, real)
        for shape, value in zip(tree_iter(made), tree_iter(real), strict=True):
            if isinstance(shape, Tensor):
                self._note(shape, value)
        return made

    def _known(self, item: Tensor) -> bool:
        return not isinstance(item, FakeTensor) or id(item) in self._real

    def _reality(self, item: Any) -> Any:
        if isinstance(item, torch.device):
            return torch.device("cpu")
        return self._real.get(id(item), item) if isinstance(item, Tensor) else item

    def _note(self, shape: Tensor, value: Tensor) -> None:
        if id(shape) not in self._real:
            weakref.finalize(shape, self._real.pop, id(shape), None)
        self._real[id(shape)] = value

    def _by_number(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """True and false in an index, as the numbers of what is true."""
        found: list[Tensor | None] = []
        for index in indices:
            real = self._real.get(id(index))
            if real is not None and real.dtype == torch.bool:
                with unset_fake_temporarily():
                    numbers = real.nonzero(as_tuple=True)
                found += [self.know(one) for one in numbers]
            else:
                found.append(index)
        return found
