"""The command line in real processes that are cheap: forked from one that has imported everything.

They are killed with SIGKILL like any other: at a moment, or before their n-th operation on files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from runs import CONF, ROOT

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"}


@dataclass(frozen=True)
class Started:
    """A process on its way and what it has printed."""

    process: BaseProcess
    out: Path
    err: Path

    def wait(self) -> Ended:
        """Its exit code (negative: the signal that killed it) and its output, once it has ended."""
        self.process.join()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, self.out.read_text(), self.err.read_text())


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@lru_cache(maxsize=1)
def _context() -> ForkServerContext:
    # The server takes its path from the environment only.
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path if before is None else path + os.pathsep + before
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    return context


def start(
    arguments: Iterable[str], folder: Path, name: str = "process", kill_at: int | None = None
) -> Started:
    """Starts the command line; its output goes to files in ``folder``.

    With ``kill_at`` it is killed before its n-th change of a file below ``folder`` or the cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    process = _context().Process(
        target=_main, args=(list(arguments), out, err, dict(os.environ), kill_at)
    )
    process.start()
    return Started(process, out, err)


def run(arguments: Iterable[str], folder: Path, kill_at: int | None = None) -> Ended:
    """The command line from its start to its end."""
    return start(arguments, folder, kill_at=kill_at).wait()


def _main(
    arguments: list[str], out: Path, err: Path, environment: dict[str, str], kill_at: int | None
) -> None:
    import warm

    from harness import cli

    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(ROOT)
    sys.argv = ["run.py", *arguments]
    if kill_at is not None:
        _kill_before(kill_at, (out.parent, Path(environment["QEP_BENCH_CACHE"])))
    sys.exit(cli.main(warm.unused, CONF, arguments))


def _kill_before(count: int, folders: tuple[Path, Path]) -> None:
    below = tuple(str(folder) for folder in folders)
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event not in CHANGES or not str(arguments[0]).startswith(below):
            return
        writes = event != "open" or bool(int(arguments[2]) & (os.O_WRONLY | os.O_RDWR))  # type: ignore[call-overload]
        seen += writes
        if writes and seen > count:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
