"""A page to ask an adapted model about pictures, and to see which experts answer.

    vlmoe demo --adapter runs/shapes-grsgd
    vlmoe demo --adapter runs/a runs/b --dataset shapes
    vlmoe demo --adapter runs/visual7w-grsgd --auth me:password.txt --host 0.0.0.0

Needs Gradio: pip install 'vlmoe[demo]'. The programmatic endpoints /ask and /choose are described
in docs/demo.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmoe.demo import serving
from vlmoe.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    args = serving.parse(argv, __doc__)
    # Gradio takes seconds: --help and a mistyped flag answer before it.
    try:
        from vlmoe.demo.app import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the demo needs Gradio: pip install 'vlmoe[demo]'") from error
    serve(args)
