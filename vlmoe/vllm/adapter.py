"""An adapter's files, read for a server: its mixtures by path, and what vLLM must be told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from vlmoe.adapter.config import MoELoraConfig
from vlmoe.adapter.load import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    check_numbers,
    find_adapter,
    read_base_name,
    read_config,
)
from vlmoe.adapter.names import FACTORS, GATE, STARTS, WEIGHT, renamed_file
from vlmoe.errors import UserError
from vlmoe.models.load import source_of
from vlmoe.vllm import ARCHITECTURES


@dataclass(frozen=True)
class Mixture:
    """The tensors of one adapted layer.

    Attributes:
        A: (E, r, in).
        B: (E, r, out).
        gate: (E, in).
        start: the first A and B, of GOAT; else None.
        scaling: of the sum over experts.
    """

    A: Tensor
    B: Tensor
    gate: Tensor
    start: tuple[Tensor, Tensor] | None
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """All of an adapter.

    Attributes:
        folder: it was read from.
        config: its settings.
        mixtures: by the path of their layer in transformers' model.
        fingerprint: the same for the same settings and tensors, and for no others.
    """

    folder: Path
    config: MoELoraConfig
    mixtures: dict[str, Mixture]
    fingerprint: str


def named(config: Any) -> str:
    """Which adapter a model's config names. Raises ``UserError`` if it names none."""
    path = getattr(config, "vlmoe_adapter", None)
    if not isinstance(path, str):
        raise UserError(
            'say which adapter: --hf-overrides \'{"architectures": ["..."], "vlmoe_adapter": '
            '"RUN"}\'; python -m vlmoe.vllm RUN prints all of it'
        )
    return path


def read(path: str | Path) -> Adapter:
    """An adapter's files, looked over.

    Raises:
        UserError: there is none, or it is damaged, or holds what cannot be served: modules that
            were trained whole, biases, embeddings.
        NotFinite: a tensor holds NaN or infinity.
    """
    folder = find_adapter(path)
    config = read_config(folder)
    check_numbers(folder)
    tensors = renamed_file(load_file(folder / WEIGHTS_FILE))
    kinds = {f".{kind}.{WEIGHT}": kind for kind in (*FACTORS, GATE, *STARTS)}
    found: dict[str, dict[str, Tensor]] = {}
    others = []
    for key, tensor in tensors.items():
        end = next((end for end in kinds if key.endswith(end)), None)
        if end is None:
            others.append(key.removeprefix(PREFIX))
            continue
        site = key.removeprefix(PREFIX).removesuffix(end)
        found.setdefault(site, {})[kinds[end]] = tensor
    if others:
        raise UserError(
            f"{folder} holds more than experts and routers, which vLLM cannot be given: "
            f"{', '.join(others[:6])}; ask it with vlmoe serve"
        )
    mixtures = {site: _mixture(site, kinds, config, folder) for site, kinds in found.items()}
    if not mixtures:
        raise UserError(f"{folder} holds no expert")
    return Adapter(folder, config, mixtures, _fingerprint(folder))


def _mixture(site: str, found: dict[str, Tensor], config: MoELoraConfig, folder: Path) -> Mixture:
    goat = config.init == "goat"
    wanted = {*FACTORS, GATE, *(STARTS if goat else ())}
    if found.keys() != wanted:
        odd = ", ".join(sorted(found.keys() ^ wanted))
        raise UserError(f"{folder} is damaged: {site} has not what a mixture is made of ({odd})")
    A, B, gate = (found[kind] for kind in (*FACTORS, GATE))
    shapes = (A.ndim, B.ndim, gate.ndim), A.shape[:2], A.shape[::2]
    if shapes != ((3, 3, 2), B.shape[:2], gate.shape):
        raise UserError(
            f"{folder} is damaged: at {site} A is {tuple(A.shape)}, B {tuple(B.shape)}, the "
            f"router {tuple(gate.shape)}"
        )
    start = (found[STARTS[0]], found[STARTS[1]]) if goat else None
    return Mixture(A, B, gate, start, config.scaling(A.shape[-1]))


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def options(adapter: str | Path, model: str | None = None) -> dict[str, Any]:
    """What ``vllm.LLM`` is to be made with, so that it serves an adapter.

    Args:
        adapter: a run's directory, an adapter's own, or a hub id.
        model: the base; None: the one that the adapter names.

    Returns:
        ``model`` and ``hf_overrides``.

    Raises:
        UserError: see ``read``; or vLLM has no such base with mixtures.
    """
    from transformers import AutoConfig

    found = read(adapter)
    source = source_of(model or read_base_name(found.folder))
    named = (AutoConfig.from_pretrained(source).architectures or ["none"])[0]
    if named not in ARCHITECTURES:
        raise UserError(
            f"vLLM takes mixtures on {' and '.join(ARCHITECTURES)}, and {source} is a {named}: "
            "ask it with vlmoe serve, or make a plain LoRA of the adapter with vlmoe export"
        )
    overrides = {"architectures": [ARCHITECTURES[named]],
                 "vlmoe_adapter": str(found.folder.absolute())}  # fmt: skip
    return {"model": source, "hf_overrides": overrides}
