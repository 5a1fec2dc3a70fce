"""A copy in host memory, of which the processes of one machine keep one together.

Each process that trains a GOAT adapter on a GPU keeps the base's own weights there: of a model of
7B in bfloat16 the adapted part is some gigabytes, and eight processes would keep eight times that.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import socket
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def kept_on_host(tensor: Tensor) -> Tensor:
    """A tensor's copy on the host; the tensor itself, if it lies there.

    Processes that train together on one machine share the copies of equal tensors, where the system
    can (Linux): the first one makes it, the others map its memory. Nothing of it is left behind
    when they end, however they do.
    """
    copy = tensor.detach().to("cpu")
    return shared(copy) if tensor.device.type != "cpu" and _are_several() else copy


def shared(copy: Tensor) -> Tensor:
    """The same numbers, in memory of this machine's processes together; see ``kept_on_host``."""
    if not hasattr(os, "memfd_create") or not copy.numel():
        return copy
    plain = copy.contiguous()
    content: Any = plain.view(-1).view(torch.uint8).numpy()
    name = f"vlmoe/{socket.gethostname()}/{hashlib.sha256(content).hexdigest()}/{plain.dtype}"
    store: Any = dist.distributed_c10d._get_default_store()
    if not store.check([name]):
        own = os.memfd_create("vlmoe")
        os.ftruncate(own, content.nbytes)
        with mmap.mmap(own, content.nbytes) as written:
            written[:] = content.tobytes()
        mapped, memory = _mapped(own, plain)
        # Others find it by this number, as long as it is in use here.
        weakref.finalize(memory, os.close, own)
        told = f"{os.getpid()} {own}"
        if store.compare_set(name, "", told).decode() == told:
            return mapped
        del mapped, memory
    process, number = store.get(name).decode().split()
    try:
        theirs = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR)
    except OSError:  # its owner needs it no longer
        return copy
    try:
        if os.fstat(theirs).st_size != content.nbytes:  # the number is another file's by now
            return copy
        found, _ = _mapped(theirs, plain)
    finally:
        os.close(theirs)
    return found if torch.equal(found, plain) else copy


def _mapped(file: int, like: Tensor) -> tuple[Tensor, mmap.mmap]:
    """A file's memory as a tensor; what is written to it, only this process sees."""
    memory = mmap.mmap(file, like.numel() * like.element_size(), mmap.MAP_PRIVATE)
    return torch.frombuffer(memory, dtype=like.dtype).view(like.shape), memory


def _are_several() -> bool:
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
