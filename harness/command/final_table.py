"""The table at the end of a sweep: what identifies a run and what came out, as wide as the screen is."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from harness.records.evaluations import Evaluations, labelled
from harness.records.record import BETTER, METRICS, PERPLEXITY, Record, way_of
from harness.settings.flat import flat, lettered
from harness.settings.said import worded

NOISE = "noise/"
SHOWN = ("perplexity", "accuracy")  # metric families in the table
PHASES = ("walk", "correct", "quantise", "evaluate")
LONG = 60  # characters of settings that still fit into a cell
GAP = 2  # between two columns
# Which columns stay where room is short: the higher, the sooner one goes.
STAYS, METRIC, RATIO, BITS, REASON, MEMORY, TIMING = 0, 1, 2, 3, 4, 5, 6


PARTS = ("grid.range.", "grid.format.", "transform.")  # what has options of its own


@dataclass(frozen=True)
class Column:
    """A column, with what its title reads like in a sentence and how soon it is left out."""

    title: str
    cells: Sequence[str]
    leaves: int = STAYS
    side: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        """The characters it takes."""
        return max(cell_len(part) for one in (self.title, *self.cells) for part in one.split("\n"))

    @property
    def name(self) -> str:
        """Its title on one line."""
        return self.title.replace("\n", "/") or "why a run was stopped"


@dataclass(frozen=True)
class FinalTable:
    """Full precision and every run: what there is room for.

    Args:
        table: for rich to print.
        explained: the lines below it that say what its letters stand for.
        left_out: names of the columns for which there is no room.
    """

    table: Table
    explained: Sequence[str]
    left_out: Sequence[str]


def final_table(
    shown: Sequence[Record], baselines: Mapping[str, Record], room: int | None
) -> FinalTable:
    """The table of the runs ``shown``, of which ``baselines`` are in full precision.

    Args:
        shown: done or stopped, from top to bottom.
        baselines: by name.
        room: characters of a line; None is no limit. Columns that don't fit are left out, times first;
            nothing is ever cut.
    """
    metrics = shown_metrics(shown)
    keys = [key for key in dict.fromkeys(chain(*metrics.values())) if not key.startswith(NOISE)]
    added = {name: one for record in shown for name, one in record.summary.get(BETTER, {}).items()}
    families = {name: better for name, (_, better) in METRICS.items()} | added
    better = {key: families[key.split("/")[0]] for key in keys}
    models: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for record in shown:
        models.setdefault(model_of(record), {})[record.run] = metrics[record.run]
    best = {
        key: {
            run for own in models.values() for run in best_runs(key, own, baselines, better[key])
        }
        for key in keys
    }
    longest = LONG if room is None else min(LONG, 3 * room // 10)
    apart, explained = lettered(list(told_apart(shown).values()), longest)
    columns = [
        Column("method", [_method(one, baselines) for one in shown], side="left"),
        *([Column("settings", apart, side="left")] if any(apart) else []),
        Column("bits", [_bits(one.summary) for one in shown]),
        Column(
            "alpha", ["–" if one.run in baselines else f"{one.summary['alpha']}" for one in shown]
        ),
    ]
    for place, key in enumerate(keys):
        figures = [_figure(key, metrics[one.run], one.run in best[key]) for one in shown]
        columns.append(Column(key.replace("/", "\n", 1), figures, METRIC if place else STAYS))
    columns += [
        Column("ratio", [_ratio(one, metrics, baselines) for one in shown], RATIO),
        Column("bits/weight", [f"{one.bits_per_weight:.2f}" for one in shown], BITS),
        *(Column(name, [_seconds(one, name) for one in shown], TIMING) for name in PHASES),
        Column("peak GB", [f"{one.peak_memory / 1e9:.1f}" for one in shown], MEMORY),
    ]
    if any(one.stopped for one in shown):
        columns.append(Column("", [_why(one) for one in shown], REASON, side="left"))
    kept, left_out = fitting(columns, room)
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for one in kept:
        table.add_column(Text(one.title), justify=one.side, no_wrap=True, min_width=one.width)
    for row, record in enumerate(shown):
        style = "green" if any(record.run in runs for runs in best.values()) else ""
        # Text: what a record says is not markup, whatever is in brackets.
        table.add_row(*(Text(one.cells[row]) for one in kept), style=style)
    table.width = sum(one.width + GAP for one in kept) - GAP
    return FinalTable(table, explained, [one.name for one in left_out])


def fitting(columns: Sequence[Column], room: int | None) -> tuple[list[Column], list[Column]]:
    """The columns that stay on a line of ``room`` characters, and those that go; some never go."""
    kept, gone = list(columns), list[Column]()
    while room is not None and sum(one.width + GAP for one in kept) - GAP > room:
        last = max(kept, key=lambda one: (one.leaves, kept.index(one)))
        if last.leaves == STAYS:
            break
        kept.remove(last)
        gone.append(last)
    return kept, [one for one in columns if one in gone]


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
        differing = [name for name in names if _differs(name, list(same.values()))]
        for run, one in same.items():
            words = [worded(name, one[name]) for name in differing if name in one]
            said[run] = ", ".join([*([str(model)] if several else []), *words])
    return {record.run: said[record.run] for record in records}


def _differs(name: str, settings: Sequence[Mapping[str, str]]) -> bool:
    """Whether a setting tells some of these apart; where a part is another, its options are no news."""
    found = {one[name] for one in settings if name in one}
    part = name.startswith(PARTS) and not name.endswith("._target_")
    return len(found) > 1 or (not part and any(name not in one for one in settings))


def headlines(record: Record) -> dict[str, float]:
    """The metrics of a run that a person looks at first, those of families that it adds included."""
    shown = {*SHOWN, *record.summary.get(BETTER, {})}
    return {key: v for key, v in record.metrics.items() if key.split("/")[0] in shown}


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
    key: str,
    metrics: Mapping[str, Mapping[str, float]],
    baselines: Collection[str],
    better: str,
) -> set[str]:
    """The quantised runs that nobody beats in a metric, if several have it; infinity never wins."""
    found = {run: own[key] for run, own in metrics.items() if key in own and run not in baselines}
    finite = [value for value in found.values() if math.isfinite(value)]
    if len(found) < 2 or not finite:
        return set()
    best = (min if better == "lower" else max)(finite)
    return {run for run, value in found.items() if value == best}


def _method(record: Record, baselines: Collection[str]) -> str:
    way = way_of(record.summary)
    return "full precision" if record.run in baselines and way == "none" else way


def _bits(known: Mapping[str, Any]) -> str:
    group = f" g{known['group_size']}" if known.get("group_size") else ""
    bits = known["bits"]
    return f"{bits if isinstance(bits, str) else format(bits, '.6g')}{group}"


def _figure(key: str, own: Mapping[str, float], best: bool) -> str:
    """A metric, its standard deviation over repeats where that is known, and a star if it is best."""
    if key not in own:
        return "–"
    noise = own.get(f"{NOISE}{key}")
    if noise is not None and key.startswith(PERPLEXITY):
        noise *= own[key]  # of the logarithm; to first order, of the figure itself
    spread = "" if noise is None else f" ±{noise:.2g}"
    return f"{own[key]:.4g}{spread}{' *' if best else ''}"


def _ratio(
    record: Record, metrics: Mapping[str, Mapping[str, float]], baselines: Collection[str]
) -> str:
    """The perplexity relative to full precision, on the first corpus on which both are known."""
    if record.run in baselines:
        return "1.00" if way_of(record.summary) == "none" else "–"
    reference = metrics.get(record.baseline or "", {})
    for key, value in metrics[record.run].items():
        if key.startswith(PERPLEXITY) and 0 < reference.get(key, math.nan) < math.inf:
            return f"{value / reference[key]:.2f}"
    return "–"


def _seconds(record: Record, phase: str) -> str:
    return f"{record.seconds[phase]:.1f} s" if phase in record.seconds else "–"


def stopped_at(record: Record) -> str:
    """The block at which a run was given up, and why."""
    why = record.stopped or {}
    return f"block {why['block']}: error {why['relative_error']:.3g} > {why['error']:g}"


def _why(record: Record) -> str:
    return "" if record.stopped is None else f"stopped at {stopped_at(record)}"
