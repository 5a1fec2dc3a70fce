"""Memory of weights and of a piece of a step, counted tensor by tensor; advice if it runs out."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers.quantizers.quantizers_utils import should_convert_module

from vlmoe.adapter import factor_pairs
from vlmoe.errors import UserError
from vlmoe.models.random import ANSWER_TOKENS, random_batch
from vlmoe.optim.families import Options, parse
from vlmoe.train.loop import answer_loss
from vlmoe.train.settings.config import TrainConfig

WORDS = 64
"""Text tokens of a question, where there is no dataset to take them from."""
MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made in the block, as they come and go.

    It also counts tensors without memory (``FakeTensorMode``), so it tells what a model would need
    that does not fit here. What a kernel needs for itself while it runs is not seen.

    Args:
        known: tensors that were there before; they and their views are not counted.

    Attributes:
        peak: the most that was there at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, Any] = {}
        for tensor in known:
            self._note(tensor.untyped_storage(), counts=False)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for item in tree_iter(made):
            if isinstance(item, Tensor):
                self._note(item.untyped_storage(), counts=True)
        return made

    def _note(self, storage: torch.UntypedStorage, *, counts: bool) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if counts else 0
        self._seen[key] = weakref.finalize(storage, self._forget, key, size)
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self.live -= size
        del self._seen[key]


def random_piece(
    base: Any, rows: int, most: int | None = None, words: int = WORDS
) -> dict[str, Tensor]:
    """A batch of questions of so many words about a picture each, of ``most`` tokens at most."""
    batch = random_batch(base, rows, words + ANSWER_TOKENS, most=most)
    length = batch["input_ids"].shape[1]
    # As if sequences branched, so that the masks are ours: transformers would look into what it is
    # given, and tensors without memory hold nothing.
    batch["seen_until"] = torch.full((rows, length), length)
    return batch


def piece_peak(model: nn.Module, batch: Mapping[str, Tensor]) -> int:
    """Bytes that forward and backward of one piece hold at once, beside weights and gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    known = [*held(model), *batch.values(), *(p.grad for p in parameters if p.grad is not None)]
    was_training = model.training
    model.train()
    with LiveBytes(known) as counter:
        answer_loss(model, dict(batch)).backward()
    model.train(was_training)
    for parameter in parameters:
        parameter.grad = None
    return counter.peak


def base_bytes(model: nn.Module, quantize: str, unquantized: Sequence[str]) -> int:
    """Memory of a base's weights, quantized as ``load_base`` would do it, from its shapes.

    4 bit: half a byte a weight; for every 64 an 8-bit scale, for every 256 of those one of 32 bits.
    8 bit: one byte a weight, for every row a scale of 32 bits. What ``unquantized`` names keeps its
    own.
    """
    total = bytes_of(model.buffers())
    small: set[int] = set()
    for path, module in model.named_modules():
        smaller = quantize != "none" and should_convert_module(path, list(unquantized))
        if isinstance(module, nn.Linear) and smaller:
            count = module.weight.numel()
            small.add(id(module.weight))
            if quantize == "4bit":
                total += count // 2 + count // 64 + 4 * (count // (64 * 256))
            else:
                total += count + 4 * module.out_features
    return total + bytes_of(p for p in model.parameters() if id(p) not in small)


def trained_bytes(model: nn.Module) -> int:
    """Memory of what trains."""
    return bytes_of(p for p in model.parameters() if p.requires_grad)


def state_bytes(model: nn.Module, optim: str, options: Options) -> int:
    """Memory that an optimizer keeps for what trains.

    Args:
        model: an adapted one.
        optim: the optimizer's name.
        options: of ``create_optimizer``.
    """
    family = parse(optim).family
    factors = bytes_of(f for pair in factor_pairs(model) for f in pair if f.requires_grad)
    others = trained_bytes(model) - factors
    return family.moments(options) * factors + family.others_moments(options) * others


def held(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, and what bitsandbytes keeps beside them."""
    found = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for holder in (state, getattr(state, "state2", None), parameter):
            for name in ("absmax", "code", "offset", "SCB"):
                value = getattr(holder, name, None)
                if isinstance(value, Tensor):
                    found.append(value)
    return found


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Memory of tensors; what several share counts once."""
    storages = {
        storage._cdata: storage.nbytes()
        for storage in (
            getattr(tensor, "_local_tensor", tensor).untyped_storage() for tensor in tensors
        )
    }
    return sum(storages.values())


@contextmanager
def explained(config: TrainConfig, devices: int = 1) -> Iterator[None]:
    """Turn running out of memory into one message with the settings that help most.

    Raises:
        UserError: memory ran out in the block.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, the CPU's has no class
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"out of memory ({first}). Most likely to help, in this order: "
            f"{'; '.join(remedies(config, devices)[:3])}"
        ) from error


def remedies(config: TrainConfig, devices: int = 1) -> list[str]:
    """Settings that save memory and are not in force yet, the most helpful and harmless first."""
    most = max(1, config.batch_size // devices)
    found = []
    if config.pieces_on(devices) < most:
        found.append(f"--grad-accum {most} (one question at a time, the same mathematics)")
    if not config.gradient_checkpointing:
        found.append("--gradient-checkpointing (the same mathematics, a third more time)")
    if config.quantize == "none":
        found.append("--quantize 4bit (a quarter of the base's memory)")
    found += [
        f"fewer or smaller experts: --experts {_halved(config.experts, config.top_k)} or "
        f"--rank {max(1, config.rank // 2)}",
        "more devices, with the base spread over them: accelerate/fsdp2 (vlmoe configs)",
        f"--eval-batch-size {max(1, config.eval_batch_size // 4)}, if it ran out while scoring",
    ]
    return found


def _halved(experts: int | list[int], top_k: int) -> str:
    """Half as many; and fewer in use, where there would not be enough."""
    counts = [max(1, n // 2) for n in (experts if isinstance(experts, list) else [experts])]
    fewer = f" --top-k {max(counts)}" if max(counts) < top_k else ""
    return ",".join(map(str, counts)) + fewer
