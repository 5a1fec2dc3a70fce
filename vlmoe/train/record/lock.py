"""One process at a time trains in a run directory."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from vlmoe.errors import Busy, UserError

LOCK = ".lock"


class RunLock:
    """Held from creation until the process ends, however it ends, or until ``release``.

    The operating system lets go of it, so a killed run leaves nothing to clean up. The file stays
    and says who had it last.

    Processes that this one forks (they decode pictures) do not hold it: they may outlive it by
    seconds.

    Args:
        directory: the run directory, which must exist.

    Raises:
        Busy: another process has it.
        UserError: the disk has no locks.
    """

    def __init__(self, directory: Path):
        handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise Busy(
                f"{directory} is in use by {owner or 'another process'}: "
                "wait for it, stop it, or choose another --output"
            ) from None
        except OSError as error:
            os.close(handle)
            raise UserError(
                f"{directory} lies on a disk that cannot lock files ({error.strerror}): choose "
                "another --output"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle: int | None = handle
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Let others in."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
