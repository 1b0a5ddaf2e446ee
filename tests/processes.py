"""The command line in real processes that are cheap: forked from one that has imported everything.

They are killed with SIGKILL like any other: at a moment, or before their n-th operation on files.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
    arguments: Iterable[str],
    folder: Path,
    name: str = "process",
    kill_at: int | None = None,
    full: str | None = None,
) -> Started:
    """Starts the command line; its output goes to files in ``folder``.

    With ``kill_at`` it is killed before its n-th change of a file below ``folder`` or the cache;
    with ``full`` it finds no space for files whose path has these words in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    process = _context().Process(
        target=_main, args=(list(arguments), out, err, dict(os.environ), kill_at, full)
    )
    process.start()
    return Started(process, out, err)


def run(
    arguments: Iterable[str], folder: Path, kill_at: int | None = None, full: str | None = None
) -> Ended:
    """The command line from its start to its end."""
    return start(arguments, folder, kill_at=kill_at, full=full).wait()


def _main(
    arguments: list[str],
    out: Path,
    err: Path,
    environment: dict[str, str],
    kill_at: int | None,
    full: str | None,
) -> None:
    import warm

    from harness.command import cli

    # Ignored where the tests were started so (nohup make test &), and then it would stay ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(ROOT)
    sys.argv = ["run.py", *arguments]
    if kill_at is not None:
        below = (str(out.parent), environment["QEP_BENCH_CACHE"])
        _before_changes(_killer(kill_at, below))
    if full is not None:
        _before_changes(_no_space(full))
    sys.exit(cli.main(warm.unused, CONF, arguments))


def _before_changes(act: Callable[[str], None]) -> None:
    """Calls ``act(path)`` before every operation that changes files."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        if event != "open" or int(arguments[2]) & (os.O_WRONLY | os.O_RDWR):
            act(str(arguments[0]))

    sys.addaudithook(hook)


def _killer(count: int, below: tuple[str, ...]) -> Callable[[str], None]:
    seen = 0

    def act(path: str) -> None:
        nonlocal seen
        seen += path.startswith(below)
        if seen > count:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def _no_space(part: str) -> Callable[[str], None]:
    def act(path: str) -> None:
        if part in path and not path.endswith(".lock"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    return act
