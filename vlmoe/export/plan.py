"""How many layers are fitted at a time, and the memory that takes: from their shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlmoe.adapter.names import FACTORS, PREFIX
from vlmoe.errors import UserError

GIB = 2**30
_DOUBLE = 8  # bytes: sums over many tokens, and their inverse


@dataclass(frozen=True)
class Shape:
    """Of one adapted layer: experts (E), rank of each (r), widths of input (D) and output (O)."""

    experts: int
    r: int
    inputs: int
    outputs: int

    @property
    def hidden(self) -> int:
        """E * r (M)."""
        return self.experts * self.r

    @property
    def sums(self) -> int:
        """Bytes of ``fit.Sums``, its matrix of inputs not shared with another layer."""
        D, M = self.inputs, self.hidden
        return _DOUBLE * (D * D + D * M + M * M + 2 * self.experts)

    @property
    def solving(self) -> int:
        """Bytes that a fit needs beside them: X^T X twice more, and factors."""
        D, M, O = self.inputs, self.hidden, self.outputs  # noqa: E741
        return _DOUBLE * (2 * D * D + 3 * M * (D + O))


def shapes_in(saved: Mapping[str, tuple[int, ...]]) -> dict[str, Shape]:
    """The layers of an adapter's file, from the shapes of its tensors (``load.read_shapes``)."""
    found = {}
    for name, (experts, r, inputs) in (
        (name, shape) for name, shape in saved.items() if f".{FACTORS[0]}." in name
    ):
        path = name.partition(f".{PREFIX}")[0].removeprefix("base_model.model.")
        _, _, outputs = saved[name.replace(FACTORS[0], FACTORS[1])]
        found[path] = Shape(experts, r, inputs, outputs)
    return found


@dataclass(frozen=True)
class Plan:
    """Layers in the groups that are fitted together, each with a pass over the questions.

    Attributes:
        passes: paths of each group.
        peak: bytes that sums and fit hold at once at most, beside the model.
        result: bytes of all factors in the host's memory, until they are written.
    """

    passes: tuple[tuple[str, ...], ...]
    peak: int
    result: int

    def text(self) -> str:
        """One line, to be read."""
        layers = sum(map(len, self.passes))
        return (
            f"{layers} layers in {len(self.passes)} pass{'es' * (len(self.passes) != 1)} over the "
            "calibration questions; "
            f"beside the model at most {self.peak / GIB:.2f} GiB where it runs, and "
            f"{self.result / GIB:.2f} GiB of factors in the host's memory"
        )


def plan(shapes: Mapping[str, Shape], budget: int) -> Plan:
    """As few passes as the budget allows.

    Args:
        shapes: of the layers, in the model's order.
        budget: bytes.

    Raises:
        UserError: not even one layer fits.
    """
    passes: list[tuple[str, ...]] = []
    group: list[str] = []
    peak = held = solving = 0
    for path, shape in shapes.items():
        if shape.sums + shape.solving > budget:
            raise UserError(
                f"{path} alone takes {(shape.sums + shape.solving) / GIB:.2f} GiB: raise --memory"
            )
        if group and held + shape.sums + max(solving, shape.solving) > budget:
            passes.append(tuple(group))
            group, held, solving = [], 0, 0
        group.append(path)
        held, solving = held + shape.sums, max(solving, shape.solving)
        peak = max(peak, held + solving)
    if group:
        passes.append(tuple(group))
    result = sum(4 * shape.hidden * (shape.inputs + shape.outputs) for shape in shapes.values())
    return Plan(tuple(passes), peak, result)
