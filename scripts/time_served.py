"""Ask `vlmoe serve` a dataset's questions by OpenAI's client, beside what `vlmoe evaluate` does.

    python scripts/time_served.py --adapter runs/shapes-grsgd --dataset shapes
    python scripts/time_served.py --adapter none --model tiny --dataset shapes --limit 20

Prints accuracy, how many choices are the same, and questions in a second. The server runs in a
process of its own. Its answers are read off what the model says, those of the evaluation off the
letters' probabilities. Needs the client: pip install openai.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from PIL import Image

from vlmoe.benchmark.served import EVALUATED, Asked, evaluated, questions, table
from vlmoe.data.example import Example
from vlmoe.errors import UserError, run_command
from vlmoe.flags import Parser
from vlmoe.train.record.finished import BASE, NONE
from vlmoe.train.record.loaded import load

LONGEST = 32  # tokens of an answer


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("--adapter", required=True, help="a run, its adapter/, a hub id, or none")
    parser.add_argument("--model", help="base (default: the one the adapter was trained on)")
    parser.add_argument("--dataset", required=True, help="name or path")
    parser.add_argument("--split", default="test", help="default %(default)s")
    parser.add_argument("--limit", type=int, default=300, help="questions (default %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="at once (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    args = parser.parse_args(argv)
    if args.limit < 1 or args.clients < 1:
        raise UserError("--limit and --clients must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    examples = questions(args.dataset, args.split, args.limit)
    adapter = None if args.adapter == NONE else args.adapter
    loaded = load(adapter, args.model, device=args.device)
    collator = loaded.collator()
    ways = {
        way: evaluated(loaded.model, collator, examples, size, way)
        for way, size in EVALUATED.items()
    }
    with serving(args) as url:
        bodies = [body(example, collator.style) for example in examples]
        for clients in sorted({1, args.clients}):
            ways[f"serve, {clients} at once"] = asked(url, args, bodies, clients)
    print(table(examples, ways))


@contextmanager
def serving(args: argparse.Namespace) -> Iterator[str]:
    """A server with that adapter, as long as the block lasts; its address."""
    command = [sys.executable, "-m", "vlmoe", "serve", "--adapter", args.adapter]
    command += ["--device", args.device, "--queue", str(args.clients)]
    command += ["--model", args.model] if args.model else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = ""
            for line in process.stdout:
                if found := re.fullmatch(r"vlmoe serve on (\S+)\n", line):
                    url = found[1]
                if line.startswith("Ready: "):
                    break
            else:
                raise UserError("the server did not start; it has said why")
            yield url
        finally:
            process.terminate()


def body(example: Example, style: Any) -> tuple[list[dict[str, Any]], Sequence[str]]:
    """The messages of a question, and its options. Raises ``UserError`` for several pictures."""
    if len(example.images) > 1:
        raise UserError(f"{example.id} has several pictures, the server takes one")
    text = style.ask(example.question, example.choices)
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if example.image is not None:
        parts.insert(0, {"type": "image_url", "image_url": {"url": _data_uri(example.image)}})
    return [{"role": "user", "content": parts}], example.choices


def asked(
    url: str, args: argparse.Namespace, bodies: Sequence[tuple[Any, Sequence[str]]], clients: int
) -> Asked:
    """What the server chooses, so many questions at once."""
    from openai import OpenAI

    from vlmoe.tasks.parse import parse_answer

    client = OpenAI(base_url=url, api_key="none")
    model = next(
        one.id for one in client.models.list() if (one.id == BASE) == (args.adapter == NONE)
    )

    def choice(asked: tuple[Any, Sequence[str]]) -> int | None:
        messages, choices = asked
        answer = client.chat.completions.create(
            model=model, messages=messages, max_tokens=LONGEST, temperature=0
        )
        return parse_answer(answer.choices[0].message.content or "", choices)

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(choice, bodies))
    return Asked(found, time.perf_counter() - begun)


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")  # which loses nothing
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    run_command(main)
