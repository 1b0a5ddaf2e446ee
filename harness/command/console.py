"""What a person sees: a header, one live bar per phase, a table at the end.

On a terminal rich draws; elsewhere (a file, a scheduler's log) the same facts come as plain lines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence, Sized
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import rich.console
from rich.console import JustifyMethod
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from harness.records.evaluations import Evaluations, described, labelled
from harness.records.record import METRICS, Record
from harness.settings.flat import flat, lettered
from harness.settings.said import worded

if TYPE_CHECKING:
    from harness.inputs.corpora import Corpus, Tokens
    from harness.settings.config import Config

T = TypeVar("T")
NOISE = "noise/"
SHOWN = ("perplexity", "accuracy")  # metric families in the final table
PHASES = ("walk", "correct", "quantise", "evaluate")
WIDE = 200
LONG = 60  # characters of settings that still fit into a cell


class Console:
    """Prints to standard output."""

    def __init__(self, out: rich.console.Console | None = None) -> None:
        self.out = out or rich.console.Console(highlight=False, soft_wrap=True, markup=False)
        if not self.out.is_terminal:
            self.out.width = WIDE  # nobody folds a log file

    def say(self, line: str, style: str = "") -> None:
        """Prints one line."""
        self.out.print(line, style=style, markup=False)

    def header(self, config: Config) -> None:
        """Says what is about to run."""
        measured = f"protocol {config.protocol}"
        if not config.quantizes:
            self.say(f"■ {config.model.name} · full precision · {measured}", style="bold")
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
                BarColumn(bar_width=32),
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
        self.say(
            f"✓ {record.run}: {record.status} already, skipped (force=true repeats it)",
            style="dim",
        )

    def finished(self, record: Record) -> None:
        """Says how a run ended, in one line."""
        if record.stopped is not None:
            self.say(f"◼ {record.run}: stopped at {stopped_at(record)}", style="yellow")
            return
        shown = [f"{key} {value:.4g}" for key, value in headlines(record).items()]
        self.say(f"✓ {record.run}: " + " · ".join([*shown, f"{record.seconds['total']:.1f} s"]))

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
        self.say(f"✗ {what}: {first} ({kind}; {where})", style="red")

    def summary(self, records: list[Record], baselines: dict[str, Record], where: str) -> None:
        """The table at the end: full precision, every run, the best marked, seconds, memory."""
        rows = [*baselines.values()]
        rows += [record for record in records if record.run not in baselines]
        shown = [record for record in rows if record.status in ("done", "stopped")]
        if not shown:
            return
        metrics = shown_metrics(shown)
        keys = [
            key for key in dict.fromkeys(chain(*metrics.values())) if not key.startswith(NOISE)
        ]
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        apart, explained = lettered(list(told_apart(shown).values()), LONG)
        words = ["method", *(["settings"] if any(apart) else [])]
        titles = ["bits", "alpha", *[key.replace("/", "\n", 1) for key in keys], "ratio"]
        for title in [*words, *titles, "bits/weight", *PHASES, "peak GB"]:
            side: JustifyMethod = "left" if title in words else "right"
            table.add_column(Text(title), justify=side, no_wrap=True)
        table.add_column("", no_wrap=True)  # why a run has no metrics
        models: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for record in shown:
            models.setdefault(model_of(record), {})[record.run] = metrics[record.run]
        best = {
            key: {run for own in models.values() for run in best_runs(key, own, baselines)}
            for key in keys
        }
        for record, said in zip(shown, apart, strict=True):
            full, own = record.run in baselines, metrics[record.run]
            names = ["full precision" if full else record.summary["method"], said]
            names = [*names[: len(words)], *_recipe(record.summary, full)]
            figures = [_figure(key, own, record.run in best[key]) for key in keys]
            ratio = "1.00" if full else _ratio(own, metrics.get(record.baseline or "", {}))
            style = "green" if any(record.run in runs for runs in best.values()) else ""
            # Text: what a record says is not markup, whatever is in brackets.
            cells = [*names, *figures, ratio, *_cost(record), _why(record)]
            table.add_row(*map(Text, cells), style=style)
        wide = self.out.options.update(width=10_000)
        table.width = Measurement.get(self.out, wide, table).maximum
        self.out.print()
        self.out.print(table, soft_wrap=True)  # rather a line that wraps than a column cut short
        for line in explained:
            self.say(line)
        evaluated = described(record.summary for record in shown)
        if evaluated:
            self.say(evaluated)
        self.say(f"records: {where}")


def told_apart(records: Sequence[Record]) -> dict[str, str]:
    """By run, in their order: what tells it from others of the same method, bits and alpha."""
    several = len({record.summary.get("model") for record in records}) > 1
    alike: dict[tuple[object, ...], dict[str, dict[str, str]]] = {}
    for record in records:
        place = ("model", "method", "bits", "group_size", "alpha")
        key = tuple(record.summary.get(name) for name in place)
        alike.setdefault(key, {})[record.run] = flat(record.config)
    said = {}
    for (model, *_), same in alike.items():
        names = dict.fromkeys(name for one in same.values() for name in one)
        differing = [name for name in names if len({one.get(name) for one in same.values()}) > 1]
        for run, one in same.items():
            words = [worded(name, one[name]) for name in differing if name in one]
            said[run] = ", ".join([*([str(model)] if several else []), *words])
    return {record.run: said[record.run] for record in records}


def stopped_at(record: Record) -> str:
    """The block at which a run was given up, and why."""
    why = record.stopped or {}
    return f"block {why['block']}: error {why['relative_error']:.3g} > {why['error']:g}"


def headlines(record: Record) -> dict[str, float]:
    """The metrics of a run that a person looks at first."""
    return {key: v for key, v in record.metrics.items() if key.split("/")[0] in SHOWN}


def shown_metrics(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """By run, the metrics that the final table shows, and ``noise/<metric>`` where it is known.

    Those of two protocols, and those on two texts of one name, have two names.
    """
    told = Evaluations(record.summary for record in records)
    texts: dict[str, set[str]] = {}
    for record in records:
        for key in headlines(record):
            texts.setdefault(told.named(record.summary, key), set()).add(_tokens(record, key))
    found: dict[str, dict[str, float]] = {}
    for record in records:
        own = found[record.run] = dict[str, float]()
        for key, value in headlines(record).items():
            name = told.named(record.summary, key)
            if len(texts[name]) > 1:
                name = labelled(name, f"tokens {_tokens(record, key)}")
            own[name] = value
            if f"{NOISE}{key}" in record.metrics:
                own[f"{NOISE}{name}"] = record.metrics[f"{NOISE}{key}"]
    return found


def _tokens(record: Record, key: str) -> str:
    """What a metric was measured on, by the beginning of its hash."""
    return record.hashes.get(key.split("/", 1)[1], "").rsplit(": ", 1)[-1][:8]


def model_of(record: Record) -> tuple[str, str]:
    """The model by name and by what its files held: figures of two are not ranked."""
    return str(record.summary.get("model")), record.contents.get("model.path", "")


def best_runs(
    key: str, metrics: Mapping[str, Mapping[str, float]], baselines: Collection[str]
) -> set[str]:
    """The quantised runs that nobody beats in a metric, if several have it; infinity never wins."""
    found = {run: own[key] for run, own in metrics.items() if key in own and run not in baselines}
    finite = [value for value in found.values() if math.isfinite(value)]
    if len(found) < 2 or not finite:
        return set()
    best = (min if METRICS[key.split("/")[0]][1] == "lower" else max)(finite)
    return {run for run, value in found.items() if value == best}


def _recipe(known: Mapping[str, Any], full: bool) -> list[str]:
    group = f" g{known['group_size']}" if known.get("group_size") else ""
    return [f"{known['bits']}{group}", "–" if full else f"{known['alpha']}"]


def _figure(key: str, own: Mapping[str, float], best: bool) -> str:
    """A metric, its standard deviation over repeats where that is known, and a star if it is best."""
    if key not in own:
        return "–"
    noise = own.get(f"{NOISE}{key}")
    if noise is not None and key.startswith("perplexity/"):
        noise *= own[key]  # of the logarithm; to first order, of the figure itself
    spread = "" if noise is None else f" ±{noise:.2g}"
    return f"{own[key]:.4g}{spread}{' *' if best else ''}"


def _ratio(own: Mapping[str, float], reference: Mapping[str, float]) -> str:
    """The perplexity relative to full precision, on the first corpus on which both are known."""
    for key, value in own.items():
        if key.startswith("perplexity/") and 0 < reference.get(key, math.nan) < math.inf:
            return f"{value / reference[key]:.2f}"
    return "–"


def _cost(record: Record) -> list[str]:
    seconds = record.seconds
    spent = [f"{seconds[name]:.1f} s" if name in seconds else "–" for name in PHASES]
    return [f"{record.bits_per_weight:.2f}", *spent, f"{record.peak_memory / 1e9:.1f}"]


def _why(record: Record) -> str:
    return "" if record.stopped is None else f"stopped at {stopped_at(record)}"


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
