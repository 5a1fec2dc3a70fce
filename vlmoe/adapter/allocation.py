"""How many experts each adapted layer gets: the same everywhere, or by depth (MoLA, 2402.08562)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from vlmoe.adapter.towers import layer_number, path_tower
from vlmoe.errors import UserError


def allocate(num_experts: int | list[int], paths: Iterable[str]) -> dict[str, int]:
    """Experts of every adapted layer.

    Of G numbers, the first goes to the shallowest group of a tower's blocks and the last to the
    deepest. Each tower is split by its own adapted depth: the i-th of its N adapted blocks
    (0-based) lies in group ``floor(i G / N)``, so groups differ by one block at most.

    Args:
        num_experts: one number for all layers, or one for each depth group.
        paths: the module paths of the adapted layers.

    Returns:
        Path to number of experts, in the order of ``paths``.

    Raises:
        UserError: more groups than a tower has adapted blocks, or a layer that lies at no depth;
            all of them at once.
    """
    paths = list(paths)
    if isinstance(num_experts, int):
        return dict.fromkeys(paths, num_experts)

    blocks: dict[str, set[int]] = defaultdict(set)
    faults = []
    for path in paths:
        number = layer_number(path)
        if number is None:
            faults.append(
                f"num_experts {num_experts} goes by depth, and {path} is in no numbered layer: "
                "give one number for all layers, or leave it out of target_modules"
            )
        else:
            blocks[path_tower(path)].add(number)
    groups = len(num_experts)
    faults += [
        f"num_experts {num_experts} splits each tower's depth in {groups}, and the {tower} tower "
        f"has {len(numbers)} adapted {'layer' if len(numbers) == 1 else 'layers'}: give at most "
        "that many numbers"
        for tower, numbers in blocks.items()
        if groups > len(numbers)
    ]
    if faults:
        raise UserError(faults)

    of_block = {
        (tower, number): num_experts[at * groups // len(numbers)]
        for tower, numbers in blocks.items()
        for at, number in enumerate(sorted(numbers))
    }
    return {path: of_block[path_tower(path), layer_number(path) or 0] for path in paths}
