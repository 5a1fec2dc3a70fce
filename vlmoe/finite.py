"""Weights and logits that are no numbers: found where they are saved, loaded and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vlmoe.errors import Diverged, UserError

NO_NUMBERS = "the model's logits are not finite (NaN or infinite)"


class NotFinite(UserError):
    """Weights or logits hold NaN or infinity: no answer can be read off them."""


class TrainedAway(NotFinite, Diverged):
    """The same in training, where a step has led there."""


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of those that hold NaN or infinity.

    Each is read once and nothing of its size is made (but for 8-bit floats); tensors of whole
    numbers (quantized weights) are taken as they are. A device is waited for once.
    """
    names: dict[torch.device, list[str]] = {}
    sound: dict[torch.device, list[Tensor]] = {}
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            tensor = tensor.detach()
            if tensor.dtype.itemsize == 1:  # of 8-bit floats torch tells no extremes
                tensor = tensor.float()
            ends = torch.stack(tensor.aminmax())
            names.setdefault(tensor.device, []).append(name)
            sound.setdefault(tensor.device, []).append(ends.isfinite().all())
    return [
        name
        for device, some in names.items()
        for name, good in zip(some, torch.stack(sound[device]).tolist(), strict=True)
        if not good
    ]


def check_finite(
    tensors: Iterable[tuple[str, Tensor]],
    where: str,
    remedy: str,
    kind: type[NotFinite] = NotFinite,
) -> None:
    """Refuse tensors that hold NaN or infinity.

    Args:
        tensors: with their names.
        where: what they belong to, for the message.
        remedy: what to do about it.
        kind: of the error.

    Raises:
        NotFinite: names the tensors.
    """
    refuse(not_finite(tensors), where, remedy, kind)


def refuse(names: Sequence[str], where: str, remedy: str, kind: type[NotFinite]) -> None:
    """Raise what ``check_finite`` raises if there are such names."""
    if names:
        more = f" and {len(names) - 6} more" if len(names) > 6 else ""
        raise kind(
            f"{where} holds numbers that are not finite (NaN or infinite), in "
            f"{', '.join(names[:6])}{more}: {remedy}"
        )
