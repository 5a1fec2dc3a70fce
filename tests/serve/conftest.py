"""Two adapters on the built-in base, behind a server in this process."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from PIL import Image

from tests.adapter.test_adapter_layer import fill
from vlmoe.adapter import MoELoraConfig
from vlmoe.data.scenes import Scene, Thing, render
from vlmoe.demo.engine import Engine
from vlmoe.demo.guard.connections import Places
from vlmoe.demo.server import bound, served
from vlmoe.models.load import load_base
from vlmoe.serve import serving

NEEDS = "the server's tests need openai, starlette and uvicorn: pip install -e '.[test]'"
QUESTION = "What colour is the ring?"
SCENE = render(Scene((Thing("red", "ring", "large", "top left"),), "grey", seed=1))


def data_uri(content: Image.Image | bytes) -> str:
    """A picture, or the content of a file, as a request holds it."""
    if isinstance(content, Image.Image):
        file = io.BytesIO()
        content.save(file, "PNG")
        content = file.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def about(url: str, question: str = QUESTION) -> list[dict]:
    """Messages that ask about a picture."""
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(["first", "second.1"]):
        torch.manual_seed(seed)
        config = MoELoraConfig(num_experts=3 + seed, top_k=2, r=2)
        model = get_peft_model(load_base("tiny").model, config)
        fill(model, seed=seed)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ("first", "second.1")}


Start = Callable[..., str]


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """``start(engine, *flags, key=None)`` serves an engine, and returns the address."""
    pytest.importorskip("uvicorn", reason=NEEDS)
    with ExitStack() as stack:

        def serve(engine: Engine, *flags: str, key: str | None = None) -> str:
            args = serving.parse(["--adapter", "none", *flags], None)
            engine.limits = serving.limits_of(args)
            listening, url = stack.enter_context(bound("127.0.0.1", None, 8100))
            app = serving.application(engine, args, key)
            places = Places(400, 400)
            stack.enter_context(
                served(app, listening, connections=places, patience=args.read_timeout)
            )
            return url

        yield serve


@pytest.fixture(scope="session")
def engine(adapters) -> Engine:
    """Loaded."""
    engine = Engine("tiny", adapters, device=torch.device("cpu"), limits=serving.USUAL)
    engine.load()
    return engine


@pytest.fixture(scope="session")
def url(start, engine) -> str:
    """The address of a server with both adapters."""
    return start(engine)
