"""Who does a run: locks that no crash leaves behind, on any file system that several machines share.

    <set>/.<run>.lock/<n>    a holder, as JSON, touched every BEAT seconds; the highest n holds the lock

Nothing but creating a file that must not exist yet has to be atomic, so it is no matter whether the
file system knows ``flock``, or knows it on one machine only. A holder on this machine is dead when its
process is, however it died. One on another machine is dead when its file has not been touched for
PATIENCE seconds of the clock of whoever wants the lock; clocks of two machines are never compared. A
lock of a dead holder n is taken over by creating n + 1, which one process can; it gives way if it
finds that it has decided on what is no longer so.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

BEAT = 5.0  # seconds between two signs of life
PATIENCE = 60.0  # seconds without one after which a holder elsewhere counts as dead
POLL = 0.3  # seconds between two looks at a lock that is waited for


class BusyError(Exception):
    """Another process does the run of ``directory``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory}: another process does this run")
        self.directory = directory


class LostError(RuntimeError):
    """This process stood still for so long that another has taken its run over."""


@dataclass(frozen=True)
class Process:
    """A process, told from every other on any machine.

    Args:
        machine: this start of a machine, and the namespace in which ``pid`` counts.
        pid: its number there.
        born: when it started, as the machine says: numbers are used again.
    """

    machine: str
    pid: int
    born: str

    @classmethod
    def own(cls) -> Process:
        """This one."""
        return cls(_machine(), os.getpid(), _born(os.getpid()) or "")

    def alive(self) -> bool | None:
        """Whether it lives; None where that can't be known from here."""
        if self.machine != _machine():
            return None
        return _born(self.pid) == self.born


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{sys.platform} {uuid.getnode():x}"


def _born(pid: int) -> str | None:
    """When a process started; None for one that is dead, also if nobody has asked how it died."""
    if Path("/proc/self/stat").exists():
        try:
            state, *known = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state in "ZX" else known[18]
    import psutil  # the proc file system of Linux has it in ticks, which no change of a clock moves

    try:
        process = psutil.Process(pid)
        dead = process.status() == psutil.STATUS_ZOMBIE
        return None if dead else str(process.create_time())
    except psutil.Error:
        return None


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a holder elsewhere, since when, and whether there was another before."""

    holder: tuple[str, int]
    since: float
    changed: bool


_signs: dict[Path, Sign] = {}  # by the lock: what this process has seen, however often it asks


class Lock:
    """The lock of one run, for one attempt after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.folder = directory, lock_path(directory)
        self._token = uuid.uuid4().hex
        self._mine: Path | None = None
        self._over = threading.Event()
        self._beaten = 0.0  # when this process last gave a sign of life, by the wall clock

    def take(self) -> bool:
        """Takes the lock unless a living process has it; never waits."""
        before = self._highest()
        stale = None if before is None else self._holder(before)
        if before is not None and (stale is None or not self._dead(stale)):
            return False
        mine = self.folder / str(0 if before is None else before + 1)
        if not self._create(mine):
            return False
        still = None if before is None else self._holder(before)
        if self._highest() != int(mine.name) or (stale and (not still or still[0] != stale[0])):
            mine.unlink(missing_ok=True)
            return False
        for other in range(int(mine.name)):
            (self.folder / str(other)).unlink(missing_ok=True)
        self._mine, self._beaten, self._over = mine, time.time(), threading.Event()
        threading.Thread(target=self._beat, args=(self._over,), name="lock", daemon=True).start()
        return True

    def release(self) -> None:
        """Gives the lock back; nothing of it stays."""
        self._over.set()
        if self._mine is not None:
            with suppress(OSError):
                if self._ours():
                    self._mine.unlink(missing_ok=True)
                self.folder.rmdir()
            self._mine = None

    def check(self) -> None:
        """Raises :class:`LostError` where another process has taken this lock over.

        That needs a process that stood still, or did not reach the disk, for PATIENCE seconds: one
        that was well a moment ago is not asked to look at the disk.
        """
        if self._mine is not None and time.time() - self._beaten > 3 * BEAT:
            if not self._ours():
                raise LostError(
                    f"{self.directory.name}: given up: after {PATIENCE:g} s without a sign of life "
                    "another process has taken it over"
                )
            self._touch()

    def held(self) -> bool:
        """Whether a process has the lock, as far as one look can tell."""
        holder = None if (found := self._highest()) is None else self._holder(found)
        return holder is not None and not self._dead(holder)

    def unsure(self) -> bool:
        """Whether further looks will tell if a holder on another machine still lives."""
        if not self.held():
            return False
        sign = _signs.get(self.folder)
        return sign is not None and not sign.changed

    def _highest(self) -> int | None:
        try:
            return max(
                (int(name) for name in os.listdir(self.folder) if name.isdigit()), default=None
            )
        except FileNotFoundError:
            return None
        except NotADirectoryError:  # what an older version left
            self.folder.unlink(missing_ok=True)
            return None

    def _holder(self, number: int) -> tuple[str, int] | None:
        """What a holder has written, and when it was last touched; None where it has gone."""
        try:
            with (self.folder / str(number)).open(encoding="utf-8") as file:
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None

    def _dead(self, holder: tuple[str, int]) -> bool:
        try:
            known = json.loads(holder[0])
            alive = Process(known["machine"], known["pid"], known["born"]).alive()
        except (ValueError, KeyError, TypeError):  # its creation was cut off, on whichever machine
            alive = None
        if alive is not None:
            return not alive
        sign = _signs.get(self.folder)
        if sign is None or sign.holder != holder:
            sign = _signs[self.folder] = Sign(holder, time.monotonic(), sign is not None)
        return time.monotonic() - sign.since > PATIENCE

    def _create(self, path: Path) -> bool:
        content = json.dumps({**asdict(Process.own()), "token": self._token})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
        except (FileExistsError, FileNotFoundError):  # another process takes it, or gives it back
            return False
        return True

    def _ours(self) -> bool:
        holder = None if self._mine is None else self._holder(int(self._mine.name))
        return holder is not None and self._token in holder[0]

    def _touch(self) -> None:
        if self._mine is not None:
            os.utime(self._mine)
            self._beaten = time.time()

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(BEAT):
            with suppress(OSError):
                if self._ours():
                    self._touch()


@contextmanager
def exclusive(directory: Path, wait: bool = True) -> Iterator[tuple[Lock, bool]]:
    """Holds the lock of a run; yields it, and whether another process had to be waited for.

    Raises:
        BusyError: another process has it, and nobody is to wait.
    """
    lock, waited = Lock(directory), False
    while not lock.take():
        if not wait:
            raise BusyError(directory)
        waited = True
        time.sleep(POLL)
    try:
        yield lock, waited
    finally:
        lock.release()


def lock_path(directory: Path) -> Path:
    """The folder of a run's lock, beside its directory."""
    return directory.parent / f".{directory.name}.lock"
