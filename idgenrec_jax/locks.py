"""Locks on files (flock): held by a process for as long as it lives, however it ends.

The file of a lock says in words who holds it; that it is held is known from the lock alone.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import Literal, overload

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system without locks answers (some network and object stores)."""


@overload
def lock_file(path: Path, *, wait: Literal[True]) -> int: ...
@overload
def lock_file(path: Path, *, wait: Literal[False]) -> int | None: ...
def lock_file(path: Path, *, wait: bool) -> int | None:
    """Return a descriptor that holds an exclusive lock on `path`; None where another has it and `wait` is false.

    The file is made where it is missing. It is held until the descriptor is closed in this process and in all that
    inherited it.

    Raises OSError where the file cannot be written, or its file system has no locks (one of `NO_LOCKS`).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if lock_descriptor(descriptor, wait=wait):
            return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def lock_descriptor(descriptor: int, *, wait: bool) -> bool:
    """Lock an open file or folder; return False where another has it and `wait` is false.

    Raises OSError where its file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def note_holder(descriptor: int, process_id: int) -> None:
    """Write into the lock's file who holds it, and since when, for people to read."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {process_id} on {socket.gethostname()} since {since}\n".encode(), 0)


def holder(path: Path) -> str:
    """Return who last held a lock, as "process PID on HOST since TIME"."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"
