"""Computed results on disk that can be computed again: shared by runs, limited in size.

    <folder>/<key>/          an entry: the files that its maker put there, complete
    <folder>/<key>/.used     its modification time is the last use; locked while the entry is in use
    <folder>/.part-*/        an entry in the making, or what a killed process left of one

The key of an entry is a hash of everything that its content depends on, so two processes that make
the same entry make the same bytes and it does not matter whose stays. When a new entry makes the
folder too large, those used least recently go; never one that somebody is using. Files are whatever
their maker writes (safetensors, say); nothing here is pickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.records.entries import flush, last_use, lock_entry, mark_used, size_of, unused

PART = ".part-"
GB = 10**9
PROBE = 2**20  # bytes that an empty cache takes for certain
logger = logging.getLogger(__name__)


def address(kind: str, **content: Any) -> str:
    """The key ``<kind>-<hash>`` of what ``content``, plain JSON data, determines."""
    text = json.dumps(content, sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


class Unkept(Exception):
    """Raised inside :meth:`Cache.create`: what is in the making is not to be kept."""


@dataclass(frozen=True)
class CacheOptions:
    """What is kept on disk for other runs and sweeps, since it can be computed again.

    Args:
        max_gb: in 10⁹ bytes; what was used least recently goes first. None keeps everything.
        reference: keep the outputs of the full-precision linears on the calibration tokens, or read
            them where a run has kept them. None: on a CPU, in a sweep of three runs or more.
    """

    max_gb: float | None = 20.0
    reference: bool | None = None

    def __post_init__(self) -> None:
        if self.max_gb is not None and not self.max_gb > 0:
            raise ValueError(f"max_gb={self.max_gb:g}: must be positive, or null for no limit")


class Cache:
    """Entries in ``folder``; those found stay until :meth:`close`.

    A disk that is full, read-only or gone, or a file system that locks nothing, costs time and no run:
    nothing is found and nothing kept from then on, which one line says.

    Args:
        folder: made when the first entry is.
        max_gb: entries are evicted beyond so many 10⁹ bytes; None keeps all. Entries in use and
            the one made last stay even where they alone are larger.

    Attributes:
        memory: what the folder did not take and a run can't do without, by key.
    """

    def __init__(self, folder: Path, max_gb: float | None = None) -> None:
        self.folder = folder
        self.max_bytes = None if max_gb is None else round(max_gb * GB)
        self.memory: dict[str, Any] = {}
        self._held: dict[str, IO[bytes]] = {}
        self._given_up = False

    def close(self) -> None:
        """Lets go of all entries: others may evict them from now on."""
        for lock in self._held.values():
            lock.close()
        self._held.clear()
        self.memory.clear()

    def find(self, key: str) -> Path | None:
        """The folder of an entry, or None where there is none.

        The entry counts as used now and stays until this cache is closed.
        """
        path = self._path(key)
        if self._given_up or not path.is_dir():
            return None
        try:
            with self._alone():
                if not path.is_dir():
                    return None
                mark_used(path)
                if key not in self._held:
                    self._held[key] = lock_entry(path, fcntl.LOCK_SH)
        except (FileNotFoundError, IsADirectoryError) as error:  # an entry that nobody has made so
            self.drop(key, error)
        except OSError as error:
            self.failed(error)
        else:
            return path
        return None

    def put(self, key: str, write: Callable[[Path], object]) -> bool:
        """Has ``write`` fill the folder of an entry; returns whether it is there, to stay until closed."""
        with self.create(key) as folder:
            if folder is not None:
                try:
                    write(folder)
                except OSError as error:
                    self.failed(error)
                    raise Unkept from error
        return self.find(key) is not None

    @contextmanager
    def create(self, key: str) -> Iterator[Path | None]:
        """An empty folder to write files to: the entry ``key`` from the end of the block on.

        None where the disk gives none. An error inside the block leaves no trace; :class:`Unkept`
        ends here. An entry of that key that is there already is replaced, unless it is in use.
        """
        path = self._path(key)
        part, lock = self._part() or (None, None)
        if part is None or lock is None:
            yield None
            return
        with lock:
            try:
                yield part
            except BaseException as error:
                shutil.rmtree(part, ignore_errors=True)
                if not isinstance(error, Unkept):
                    raise
                return
            try:
                flush(part)
                gone = self._keep(part, path)
            except OSError as error:
                gone = [part]
                self.failed(error)
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, key: str) -> bool:
        """Takes an entry out; returns whether it is gone (False: somebody is using it)."""
        path = self._path(key)
        if not path.is_dir():
            return True
        with self._alone():
            if not path.is_dir():
                return True
            moved = self._set_aside(path)
        if moved:
            shutil.rmtree(moved, ignore_errors=True)
        return moved is not None

    def drop(self, key: str, why: Exception) -> None:
        """Takes out a damaged entry, whoever is using it, and says so."""
        logger.warning("the cache has lost an entry (%s): it is computed again", why)
        if held := self._held.pop(key, None):
            held.close()
        try:
            with self._alone():
                moved = self._moved(self._path(key))
        except FileNotFoundError:  # another process was quicker
            return
        except OSError as error:
            self.failed(error)
            return
        shutil.rmtree(moved, ignore_errors=True)

    def failed(self, error: OSError) -> None:
        """Goes on without the folder, and says so."""
        self._given_up = True
        said = error.strerror or str(error)
        logger.warning("the cache %s is of no use (%s): going on without it", self.folder, said)

    def probe(self) -> None:
        """Looks whether the folder takes entries, before anything depends on it."""
        with self.create("probe") as folder:
            if folder is not None:
                try:
                    (folder / "probe").write_bytes(bytes(PROBE))
                except OSError as error:
                    self.failed(error)
                raise Unkept

    def size(self) -> int:
        """Bytes of all entries."""
        if not self.folder.is_dir():
            return 0
        with self._alone():
            return sum(size_of(path) for path in self._entries())

    def _path(self, key: str) -> Path:
        if not re.fullmatch(r"\w[\w.-]*", key, re.ASCII):
            raise ValueError(f"cache key {key!r}: letters, digits, '_', '-' and '.' only")
        return self.folder / key

    def _part(self) -> tuple[Path, IO[bytes]] | None:
        """A new folder for an entry and its lock; None where the disk gives none."""
        if self._given_up:
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                part = Path(tempfile.mkdtemp(prefix=PART, dir=self.folder))
                mark_used(part)
                return part, lock_entry(part, fcntl.LOCK_EX)
        except OSError as error:
            self.failed(error)
            return None

    def _keep(self, part: Path, path: Path) -> list[Path]:
        """Makes ``part`` the entry at ``path``; returns what is to be removed."""
        with self._alone():
            gone, old = [part], None
            if not os.path.lexists(path) or (old := self._set_aside(path)):
                mark_used(part)
                os.replace(part, path)
                gone = [old] if old else []
            return gone + self._evict()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps others from adding, taking up and evicting entries; held for moments."""
        with (self.folder / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and path.name[0] != "."]

    def _evict(self) -> list[Path]:
        """Moves aside what has to go; returns where it is now, with what killed processes left."""
        dead = [path for path in self.folder.glob(f"{PART}*") if unused(path)]
        if self.max_bytes is None:
            return dead
        sizes = {path: size_of(path) for path in self._entries()}
        total = sum(sizes.values())
        for path in sorted(sizes, key=last_use):
            if total <= self.max_bytes:
                break
            if moved := self._set_aside(path):  # the newest is in its maker's use
                total -= sizes[path]
                dead.append(moved)
        return dead

    def _set_aside(self, path: Path) -> Path | None:
        """Renames an entry that nobody uses, which is quick; None where somebody does."""
        return self._moved(path) if unused(path) else None

    def _moved(self, path: Path) -> Path:
        """Renames whatever lies at the place of an entry into a folder that is going to be removed."""
        moved = Path(tempfile.mkdtemp(prefix=PART, dir=self.folder))
        os.replace(path, moved / path.name)
        return moved
