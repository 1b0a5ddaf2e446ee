"""One entry of a cache: when it was last used, whether somebody uses it, what it weighs."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

USED = ".used"  # its modification time is the last use; locked while the entry is in use


def mark_used(entry: Path) -> None:
    """Its last use is now."""
    (entry / USED).touch()
    now = time.time_ns()  # touch alone takes the kernel's clock, which is coarse
    os.utime(entry / USED, ns=(now, now))


def lock_entry(entry: Path, kind: int) -> IO[bytes]:
    """Locks an entry until the returned file is closed, or its process dies, however it dies."""
    file = (entry / USED).open("r+b")
    try:
        fcntl.flock(file, kind)
    except BaseException:
        file.close()
        raise
    return file


def unused(entry: Path) -> bool:
    """Whether nobody holds its lock."""
    try:
        lock_entry(entry, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    except BlockingIOError:
        return False
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return True  # its maker died before, it is being removed, or it is no entry
    return True


def last_use(entry: Path) -> tuple[int, str]:
    """What entries are sorted by, the one used least recently first."""
    try:
        return (entry / USED).stat().st_mtime_ns, entry.name
    except OSError:  # somebody tidied up in it
        return 0, entry.name


def size_of(entry: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in entry.rglob("*") if path.is_file())


def flush(folder: Path) -> None:
    """Has everything on the disk before the entry appears: a crash may lose it, not empty it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
