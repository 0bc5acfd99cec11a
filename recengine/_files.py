"""Replacing files and directories so that a crash leaves the old or the new one, and alone.

Where the file system cannot exchange names, a crash may leave the old one as .NAME.retired.PID.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def sync(path: Path) -> None:
    """Flushes a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds a lock on the directory itself, so that no lock file is left in it.

    Raises:
        BlockingIOError: another holds it, and `wait` is False.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one step: whoever opens it finds the old content or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    sync(temporary)
    temporary.rename(path)


def refuse_file(path: Path) -> None:
    """Raises NotADirectoryError where something else than a directory stands."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))


def publish_directory(staging: Path, destination: Path) -> None:
    """Flushes the files of `staging` and makes it `destination`, in one step.

    A directory that stands there is replaced, a file is not. Both must be on one file system.
    """
    refuse_file(destination)
    for file in staging.rglob("*"):
        sync(file)
    sync(staging)
    if not destination.exists():
        staging.rename(destination)
    else:
        _exchange(staging, destination)
        shutil.rmtree(staging)
    sync(destination.parent)


def _exchange(first: Path, second: Path) -> None:
    """Swaps the names of two directories; with two renames where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    error = ctypes.get_errno()
    if error not in _UNSUPPORTED:
        raise OSError(error, os.strerror(error), str(first), None, str(second))
    retired = second.with_name(f".{second.name}.retired.{os.getpid()}")
    second.rename(retired)
    first.rename(second)
    retired.rename(first)
