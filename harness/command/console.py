"""What a person sees: a header, one live bar per phase, a table at the end.

On a terminal rich draws; elsewhere (a file, a scheduler's log) the same facts come as plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sized
from typing import TYPE_CHECKING, TypeVar

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.command.final_table import final_table, headlines, stopped_at
from harness.records.evaluations import described
from harness.records.record import Record

if TYPE_CHECKING:
    from harness.command.pace import Pace
    from harness.inputs.corpora import Corpus, Tokens
    from harness.settings.config import Config

T = TypeVar("T")
WIDE = 200


class Console:
    """Prints to standard output.

    Args:
        out: another place to print to.
        wide: the table at the end has all its columns, however narrow the terminal is.
    """

    def __init__(self, out: rich.console.Console | None = None, wide: bool = False) -> None:
        self.out = out or rich.console.Console(highlight=False, soft_wrap=True, markup=False)
        self.pace: Pace | None = None  # of a sweep
        self.passed_over = set[str]()  # runs that somebody had done already
        self._done = set[str]()
        # Of the table at the end; nobody folds a log file.
        self.room = self.out.width if self.out.is_terminal and not wide else None
        if not self.out.is_terminal:
            self.out.width = WIDE

    def say(self, line: str, style: str = "") -> None:
        """Prints one line."""
        self.out.print(line, style=style, markup=False)

    def header(self, config: Config) -> None:
        """Says what is about to run."""
        measured = f"protocol {config.protocol}"
        if not config.quantizes:
            codes = config.codes()
            what = f"codes ({codes})" if codes else "full precision"
            self.say(f"■ {config.model.name} · {what} · {measured}", style="bold")
            return
        axes, qep = config.axes, config.qep
        said = axes.said
        groups = f"groups of {said.group_size}" if said.group_size else "per channel"
        bits = f"{said.bits} bits" if axes.budget is None else f"{axes.budget:g} effective bits"
        parts = " · ".join([f"{bits} {groups}", *axes.words(config.method)])
        alpha = qep.alpha if qep.alpha == "auto" else f"{qep.alpha:g}"
        target = " to the residual stream" if qep.target == "residual" else ""
        self.say(
            f"■ {config.model.name} · {config.method_name} · {parts} · "
            f"QEP alpha {alpha}{target} · {measured}",
            style="bold",
        )

    def windows(self, config: Config, windows: Mapping[str, Tokens], notes: Iterable[str]) -> None:
        """Says what a run reads and where it has start tokens; then what there is to know about it."""
        for name, tokens in windows.items():
            count, length = tokens.ids.shape
            what = f"evaluation {name}, {count} windows of {length} tokens"
            seed = ""
            if name in config.calibrations:
                what = f"{name} {summary(config.calibrations[name])}"
                seed = f" · seed {config.seed}"
            start = f" · {tokens.start}" if tokens.start else ""
            self.say(f"  {what}{start}{seed}", style="dim")
        for note in notes:
            self.say(f"  ! {note}", style="yellow")

    def track(
        self, items: Iterable[T], label: str, total: int | None = None
    ) -> Generator[T, None, None]:
        """Yields ``items`` under a progress bar with the time left; a plain line elsewhere."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        start = time.perf_counter()
        if self.out.is_terminal:
            columns = (
                TextColumn("  {task.description:<24}", markup=False),
                BarColumn(bar_width=min(32, max(4, self.out.width - 60))),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("· left"),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.out, transient=True) as progress:
                yield from progress.track(items, total=total, description=label)
        else:
            yield from items
        self.say(f"  {label:<24} {time.perf_counter() - start:7.1f} s")

    def skipped(self, record: Record) -> None:
        """Says that a run is done already."""
        if record.run not in self._done:
            self.passed_over.add(record.run)
        said = f"✓ {record.run}: {record.status} already, skipped (force=true repeats it)"
        self.say(self._placed(said, record.run), style="dim")

    def _placed(self, said: str, run: str, record: Record | None = None) -> str:
        """What is said of the end of a run, and how far the sweep is with it."""
        place = self.pace.ended(run, record) if self.pace is not None else ""
        return f"{said} · {place}" if place else said

    def finished(self, record: Record) -> None:
        """Says how a run ended, in one line."""
        self._done.add(record.run)
        if record.stopped is not None:
            said = f"◼ {record.run}: stopped at {stopped_at(record)}"
            self.say(self._placed(said, record.run, record), style="yellow")
            return
        shown = [f"{key} {value:.4g}" for key, value in headlines(record).items()]
        said = f"✓ {record.run}: " + " · ".join([*shown, f"{record.seconds['total']:.1f} s"])
        self.say(self._placed(said, record.run, record))

    def failed(self, what: str, error: BaseException, where: str) -> None:
        """Says in one line that something failed, and where its traceback is."""
        self._failed(what, type(error).__name__, str(error), where)

    def ended(self, record: Record, path: str) -> None:
        """Says how a run ended that another process did, in the same words."""
        if record.status != "failed":
            self.finished(record)
            return
        error = record.error or {"type": "unknown", "message": ""}
        self._failed(record.run, error["type"], error["message"], f"traceback in {path}")

    def _failed(self, what: str, kind: str, message: str, where: str) -> None:
        first = (message or kind).splitlines()[0]
        self.say(self._placed(f"✗ {what}: {first} ({kind}; {where})", what), style="red")

    def summary(self, records: list[Record], baselines: dict[str, Record], where: str) -> None:
        """The table at the end: full precision, every run, the best marked, seconds, memory."""
        rows = [*baselines.values()]
        rows += [record for record in records if record.run not in baselines]
        shown = [record for record in rows if record.status in ("done", "stopped")]
        if not shown:
            return
        found = final_table(shown, baselines, self.room)
        self.out.print()
        self.out.print(found.table, soft_wrap=True)  # rather a line that wraps than one cut short
        for line in found.explained:
            self.say(line)
        if found.left_out:
            self.say(
                f"no room for: {', '.join(found.left_out)}; --wide shows all, as do the records"
            )
        evaluated = described(record.summary for record in shown)
        if evaluated:
            self.say(evaluated)
        self.say(f"records: {where}; compared: python -m analysis dashboard {where}")


def summary(corpus: Corpus) -> str:
    """A corpus in a few words, for instance ``wiki, 16 windows of 256 tokens, 4 held out``."""
    known = {key: getattr(corpus, key, None) for key in ("path", "windows", "length", "holdout")}
    parts = [corpus.name]
    if known["path"]:
        parts.append(str(known["path"]))
    if known["windows"] or known["length"]:
        length = f" of {known['length']} tokens" if known["length"] else ""
        parts.append(f"{known['windows'] or 'all'} windows{length}")
    if known["holdout"]:
        parts.append(f"{known['holdout']} held out")
    return ", ".join(parts)
