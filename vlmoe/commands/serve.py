"""Answer OpenAI's clients: an adapted model behind /v1/chat/completions, on this machine.

    vlmoe serve --adapter runs/shapes-grsgd
    vlmoe serve --adapter runs/a runs/b --api-key-file key.txt --host 0.0.0.0
    vlmoe serve --adapter none --model tiny

For one machine and few users: one answer at a time, the mixture itself and nothing lost. Needs
uvicorn and Starlette: pip install 'vlmoe[serve]'. What it takes, and what to take for more users,
is told in docs/serving.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from vlmoe.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    from vlmoe.serve import serving

    args = serving.parse(argv, __doc__)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'vlmoe[serve]'")
    serving.serve(args)
