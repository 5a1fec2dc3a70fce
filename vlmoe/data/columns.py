"""The columns of a prepared dataset, and whether a table has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

FREE = ("system", "turns", "references", "more")
"""Those of free-form questions, which format 2 has besides."""


def column_faults(schema: pa.Schema) -> Iterable[str]:
    """What a table lacks, or has in another type."""
    import pyarrow.types as kinds

    def is_text(kind: pa.DataType) -> bool:
        return kinds.is_string(kind) or kinds.is_large_string(kind)

    def is_texts(kind: pa.DataType) -> bool:
        return (kinds.is_list(kind) or kinds.is_large_list(kind)) and is_text(kind.value_type)

    def is_picture(kind: pa.DataType) -> bool:
        names = (
            {kind.field(i).name for i in range(kind.num_fields)} if kinds.is_struct(kind) else {}
        )
        return {"bytes", "path"} <= set(names)

    def is_turns(kind: pa.DataType) -> bool:
        return (
            (kinds.is_list(kind) or kinds.is_large_list(kind))
            and kinds.is_struct(inner := kind.value_type)
            and {inner.field(i).name for i in range(inner.num_fields)} == {"question", "answer"}
            and all(is_text(inner.field(i).type) for i in range(inner.num_fields))
        )

    def is_pictures(kind: pa.DataType) -> bool:
        return (kinds.is_list(kind) or kinds.is_large_list(kind)) and is_picture(kind.value_type)

    expected: dict[str, tuple[str, Callable[[pa.DataType], bool]]] = {
        "id": ("text", is_text),
        "image": ("pictures", is_picture),
        "question": ("text", is_text),
        "choices": ("lists of text", is_texts),
        "answer": ("whole numbers", kinds.is_integer),
        "category": ("text", is_text),
    }
    if "value" in schema.names:
        expected["value"] = ("numbers", kinds.is_floating)
    if set(FREE) & set(schema.names):
        expected |= {
            "system": ("text", is_text),
            "turns": ("lists of questions and answers", is_turns),
            "references": ("lists of text", is_texts),
            "more": ("lists of pictures", is_pictures),
        }
    for name, (what, fits) in expected.items():
        if name not in schema.names:
            yield f"no column {name!r}"
        elif not fits(schema.field(name).type):
            yield f"column {name!r} holds {schema.field(name).type}, expected {what}"
