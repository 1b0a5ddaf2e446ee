"""``python -m harness.command.runs results/local``: the runs of a folder: list, filter, remove, redo.

    python -m harness.command.runs results/local                              list all
    python -m harness.command.runs results/local --status failed --bits 2,3   list some
    python -m harness.command.runs results/local '*-gptq-*' --remove          delete them
    python -m harness.command.runs results/local --status failed --redo forget them, to be redone

A run that is under way holds a lock; it is listed as such and never touched.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.records.disk import remove
from harness.records.locks import POLL, Lock
from harness.records.record import (
    CONFIG,
    LAYERS,
    METRICS,
    RECORD,
    Record,
    RecordError,
    read_record,
)
from harness.records.whole import intact

STATUSES = ("done", "failed", "stopped", "running", "half", "damaged")
FACTS = ("method", "bits", "alpha", "model")


class RunsError(ValueError):
    """What can't be done; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A run's directory and what is known of it; ``record`` is None where it left none.

    ``status`` is that of the record, or "running" while a process holds the lock, "half" for what a
    killed process left, "damaged" for a record that can't be read or lacks some of its rows.
    """

    directory: Path
    status: str
    record: Record | None = None

    def fact(self, name: str) -> str:
        """Method, bits, alpha or model as it is shown, "" where unknown."""
        value = self.record.summary.get(name, "") if self.record else ""
        return f"{value:g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Lists, removes or re-queues; 0 done, 1 nothing matched or left alone, 2 can't be done."""
    options = parsed(arguments)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 200
    try:
        everything = list(runs(options.folder))
        if not everything:
            sets = sorted(
                {str(path.parent.parent) for path in options.folder.glob(f"*/*/{RECORD}")}
            )
            raise RunsError(f"{options.folder}: no runs here" + "; try ".join(["", *sets[:1]]))
        check_filters(options, everything)
        chosen = [run for run in everything if matches(run, options)]
        if not chosen:
            print(f"no run of {len(everything)} in {options.folder} matches", file=sys.stderr)
            return 1
        console.print(table(chosen))
        if not (options.remove or options.redo):
            return 0
        confirm(len(chosen), "remove" if options.remove else "redo", options.yes)
        return change(chosen, options.remove, console)
    except RunsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.command.runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="a set of results, for instance results/local")
    parser.add_argument("name", nargs="?", default="*", help="pattern of run names, '*-gptq-*'")
    parser.add_argument("--status", help=f"one or several of {', '.join(STATUSES)}")
    for name in FACTS:
        parser.add_argument(f"--{name}", help="one or several, separated by commas")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--remove", action="store_true", help="delete the runs shown")
    action.add_argument(
        "--redo", action="store_true", help="delete their records: the next sweep redoes them"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser.parse_intermixed_args(arguments)


def runs(folder: Path) -> Iterator[Run]:
    """The runs in ``folder``, by name; links are not followed.

    Raises:
        RunsError: there is no such folder.
    """
    if not folder.is_dir():
        known = [str(one) for one in folder.parent.glob("*") if one.is_dir()]
        near = get_close_matches(str(folder), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RunsError(f"{folder}: no such folder of results{hint}")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_dir():
            continue
        if any((path / name).exists() for name in (RECORD, CONFIG, LAYERS)):
            yield looked_at(path)


def looked_at(directory: Path) -> Run:
    """What lies in a run's directory."""
    try:
        record = read_record(directory)
    except FileNotFoundError:
        return Run(directory, "running" if locked(directory) else "half")
    except RecordError:
        return Run(directory, "damaged")
    if locked(directory):
        return Run(directory, "running", record)
    return Run(directory, "damaged" if intact(directory, record) else record.status, record)


def locked(directory: Path) -> bool:
    """Whether a process holds the lock of a run."""
    return Lock(directory).held()


def check_filters(options: argparse.Namespace, everything: Sequence[Run]) -> None:
    """Raises RunsError for a value that no run has, with those that there are."""
    for name in ("status", *FACTS):
        known = set(STATUSES) if name == "status" else {run.fact(name) for run in everything}
        for value in wanted(options, name) or []:
            if value not in known:
                allowed = ", ".join(sorted(known - {""})) or "none"
                near = get_close_matches(value, known - {""}, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise RunsError(f"--{name}={value}: the runs here have {allowed}{hint}")


def wanted(options: argparse.Namespace, name: str) -> list[str] | None:
    """The values that a filter lets through, numbers written as they are shown; None for all."""
    given = getattr(options, name)
    if given is None:
        return None
    return [_shown(value.strip()) for value in given.split(",")]


def _shown(value: str) -> str:
    try:
        return f"{float(value):g}"
    except ValueError:
        return value


def matches(run: Run, options: argparse.Namespace) -> bool:
    """Whether all filters let a run through."""
    if not fnmatch(run.directory.name, options.name):
        return False
    asked = {name: wanted(options, name) for name in ("status", *FACTS)}
    facts = {"status": run.status} | {name: run.fact(name) for name in FACTS}
    return all(values is None or facts[name] in values for name, values in asked.items())


def table(chosen: Sequence[Run]) -> Table:
    """One row a run."""
    shown = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    left = ("run", "status", "method", "metric")
    for title in ("run", "status", "method", "bits", "alpha", "metric", "age", "seconds"):
        shown.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    for run in chosen:
        record = run.record
        metric = headline(record.metrics) if record else ""
        seconds = record.seconds.get("total") if record else None
        cells = [run.directory.name, run.status]
        cells += [run.fact(name) for name in ("method", "bits", "alpha")]
        cells += [metric, age(run), f"{seconds:.1f}" if seconds is not None else ""]
        style = "red" if run.status in ("failed", "damaged") else None
        shown.add_row(*map(Text, cells), style=style)  # brackets are no markup
    return shown


def headline(metrics: Mapping[str, float]) -> str:
    """The metric that says most: the first there is in the order of the table of all metrics."""
    order = list(METRICS)
    families = {key: key.split("/")[0] for key in metrics}
    known = [key for key in metrics if families[key] in order]
    if not known:
        return ""
    key = min(known, key=lambda one: order.index(families[one]))
    return f"{key} {metrics[key]:.4g}"


def age(run: Run) -> str:
    """How long ago something last happened to a run."""
    try:
        last = datetime.fromisoformat(run.record.finished if run.record else "").timestamp()
    except ValueError:  # it does not say
        paths = [run.directory / name for name in (RECORD, LAYERS, CONFIG)]
        last = max(path.stat().st_mtime for path in paths if path.exists())
    seconds = max(0.0, time.time() - last)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def confirm(count: int, action: str, yes: bool) -> None:
    """Asks on a terminal; elsewhere only ``--yes`` goes on."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RunsError(f"not a terminal, so nobody can be asked: add --yes to {action} them")
    if input(f"{action} {count} runs? [y/N] ").strip().lower() not in ("y", "yes"):
        raise RunsError("nothing changed")


def change(chosen: Sequence[Run], whole: bool, console: Console) -> int:
    """Removes the runs or their records; those under way stay. 1 where any stayed."""
    left = 0
    for run in chosen:
        lock = Lock(run.directory)
        while not (ours := lock.take()) and lock.unsure():
            time.sleep(POLL)  # somebody on another machine has died, or will give a sign of life
        if not ours:
            left += 1
            console.print(f"{run.directory.name}: under way, left alone", style="yellow")
            continue
        try:
            if whole:
                remove(run.directory)
            else:
                remove(run.directory / RECORD)
        finally:
            lock.release()
    verb = "removed" if whole else "to be redone: start the sweep again"
    console.print(f"{len(chosen) - left} runs {verb}")
    commands = {run.record.command for run in chosen if run.record and run.record.command}
    if not whole:
        for command in sorted(commands):
            console.print(f"  {command}", style="dim", markup=False)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
